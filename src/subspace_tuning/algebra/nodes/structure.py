"""The structure of matrices that follows from a node's form alone, whatever the values.

A node's rule gives its own structure; the rules here give that of composites. Nothing claimed depends on the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Flag, auto
from functools import reduce
from operator import and_, or_


class Structure(Flag):
    """The structure of a matrix."""

    NONE = 0
    IDENTITY = auto()
    DIAGONAL = auto()
    BLOCK_DIAGONAL = auto()
    ORTHOGONAL = auto()
    LOW_RANK = auto()  # at most r, or q
    SPARSE = auto()  # zero except in O(n + m) or p entries
    NORMALISED_COLUMNS = auto()  # by ``unit``: of norm 1, or 0
    NORMALISED_ROWS = auto()


NONE = Structure.NONE
DIAGONAL = Structure.DIAGONAL | Structure.BLOCK_DIAGONAL | Structure.SPARSE
IDENTITY = Structure.IDENTITY | Structure.ORTHOGONAL | DIAGONAL

_ZEROS = DIAGONAL  # patterns of zeros, kept by any entry-wise map of 0 to 0
_BY_NUMBER = _ZEROS | Structure.LOW_RANK


def of_product(parts: Sequence[Structure]) -> Structure:
    """Return the structure of a product of factors."""
    common = reduce(and_, parts)
    kept = common & (Structure.IDENTITY | Structure.ORTHOGONAL) | reduce(or_, parts) & Structure.LOW_RANK
    others = [part for part in parts if Structure.DIAGONAL not in part]
    if not others:
        return kept | DIAGONAL
    # Diagonals scale rows and columns, which keeps zeros in place.
    return kept | others[0] & (Structure.BLOCK_DIAGONAL | Structure.SPARSE) if len(others) == 1 else kept


def of_sum(parts: Sequence[Structure]) -> Structure:
    """Return the structure of a sum, or of another entry-wise combination: zeros where all terms have them."""
    # Blocks may have different sizes, so the sum does not inherit them from several terms.
    common = reduce(and_, parts)
    return DIAGONAL if Structure.DIAGONAL in common else common & Structure.SPARSE


def of_entries(part: Structure) -> Structure:
    """Return the structure of a matrix whose entries went through a function that maps 0 to 0."""
    return part & _ZEROS


def of_multiple(part: Structure) -> Structure:
    """Return the structure of a number times a matrix."""
    return part & _BY_NUMBER


def of_hadamard(parts: Sequence[Structure]) -> Structure:
    """Return the structure of an element-wise product: zero where any of them is."""
    return reduce(or_, parts) & _ZEROS


def of_transpose(part: Structure) -> Structure:
    """Return the structure of a transposed matrix."""
    columns, rows = Structure.NORMALISED_COLUMNS, Structure.NORMALISED_ROWS
    kept = part & ~(columns | rows)
    return kept | (rows if columns in part else NONE) | (columns if rows in part else NONE)
