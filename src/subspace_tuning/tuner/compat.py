"""Private names of peft that this package relies on.

``tests/test_compat.py`` states what each of them must do, and which attributes of peft's layers are also used:
``_active_adapter`` and ``_disable_adapters``.
"""

from __future__ import annotations

from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import _check_adapters_not_merged as check_adapters_not_merged
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers as include_all_linear_layers
from peft.utils.other import _set_layer_requires_grad as set_layer_requires_grad

__all__ = ["BufferDict", "check_adapters_not_merged", "include_all_linear_layers", "set_layer_requires_grad"]
