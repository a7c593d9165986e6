"""What torch keeps to itself and this package relies on; ``tuner/compat.py`` has what peft does.

``tests/test_compat.py`` states what each of them must do. The names of a module's dictionaries (``_parameters``,
``_buffers``, ``_modules``, ``_forward_hooks`` and the like) and a tensor's ``_version`` are used where they are needed.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["TorchDispatchMode", "differentiates_forward", "functorch_is_active", "plain_tensors", "tree_leaves"]

functorch_is_active = torch._C._are_functorch_transforms_active
"""Whether a transform of torch.func looks on. The very function: it is asked in every call of a layer."""

plain_tensors = torch._C.DisableTorchFunctionSubclass
"""A context in which subclasses of tensors are treated as tensors."""


def differentiates_forward() -> bool:
    """Whether a forward derivative is being taken."""
    return forward_ad._current_level >= 0
