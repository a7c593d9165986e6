"""Private names of torch that this package relies on; ``tuner/compat.py`` has those of peft.

``tests/test_compat.py`` states what each of them must do. A module's dictionaries (``_parameters``, ``_buffers``,
``_modules``, ``_forward_hooks`` and so on) and a tensor's ``_version`` are used directly where needed.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["TorchDispatchMode", "differentiates_forward", "functorch_is_active", "plain_tensors", "tree_leaves"]

functorch_is_active = torch._C._are_functorch_transforms_active
"""Whether a transform of torch.func is active. torch's own function, since every layer call asks it."""

plain_tensors = torch._C.DisableTorchFunctionSubclass
"""A context in which subclasses of tensors are treated as tensors."""


def differentiates_forward() -> bool:
    """Return whether a forward derivative is being taken."""
    return forward_ad._current_level >= 0
