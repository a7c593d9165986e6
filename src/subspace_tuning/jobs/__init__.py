"""Work that goes on after an interruption: training runs, extractions and benchmarks all rest on this.

A job is what its description says, and a folder belongs to one job. One process at a time works in it. What is done
is written at once, whole or not at all, so whatever ends a process, the same call goes on from there.
"""

from .description import Description, canonical, difference, digest
from .fields import Fields, check_fields, read_object
from .folder import LOCK, alone, claim, is_vacant, owned, parts
from .units import kept, measured, perform

__all__ = [
    "LOCK",
    "Description",
    "Fields",
    "alone",
    "canonical",
    "check_fields",
    "claim",
    "difference",
    "digest",
    "is_vacant",
    "kept",
    "measured",
    "owned",
    "parts",
    "perform",
    "read_object",
]
