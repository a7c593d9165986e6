r"""Roles in a transformer block, and the modules that play them in each architecture.

A method's placement is given in roles ("key", "value", "ffn_in"), peft's targets in module names; this file translates.
A fused projection plays every role it contains: GPT-2's `attn.c_attn` is query, key and value. The cross-attention of
an encoder-decoder is attention like any other. Poolers and task heads have no role.

Examples:
    >>> print(target_modules("bert", ["key", "ffn_in"]))
    (?:.*\.)?(?:attention\.self\.key|intermediate\.dense)
"""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import SubspaceError, nearest
from ..methods.roles import ROLES
from .architectures import ARCHITECTURES, PLACES

__all__ = ["ROLES", "known_model_types", "target_modules"]


def known_model_types() -> tuple[str, ...]:
    """Return the values of `model.config.model_type` in the table."""
    return tuple(ARCHITECTURES)


def target_modules(model_type: str, roles: Iterable[str]) -> str:
    """Return the regular expression for peft's `target_modules` that matches exactly the modules playing `roles`.

    A role that the architecture lacks is left out: BERT's feed-forward block has no gate.

    Args:
        model_type: a transformers model's `config.model_type`.
        roles: some of `ROLES`, in any order.

    Raises:
        SubspaceError: the model type or a role is unknown, or the architecture has none of the roles.
    """
    wanted = frozenset(roles)
    if unknown := sorted(wanted.difference(PLACES)):
        raise SubspaceError(f"unknown role {unknown[0]!r}; {nearest(unknown[0], PLACES)}. Or pass target_modules.")
    if model_type not in ARCHITECTURES:
        known = nearest(model_type, ARCHITECTURES)
        raise SubspaceError(f"no roles are known for model type {model_type!r}; {known}. Or pass target_modules.")
    names = ARCHITECTURES[model_type]
    endings = dict.fromkeys(names[role] for role in PLACES if role in wanted and role in names)
    if not endings:
        asked = ", ".join(role for role in PLACES if role in wanted) or "no role"
        raise SubspaceError(f"asked for {asked}; {model_type!r} has only {', '.join(names)}. Or pass target_modules.")
    return rf"(?:.*\.)?(?:{'|'.join(endings)})"
