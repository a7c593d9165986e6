"""What the laws run on: every registered method, a person's own method, and formulas in strings.

The decorated function below is all that it takes to add a method: each law then runs on it.
"""

from __future__ import annotations

from subspace_tuning import methods
from subspace_tuning.algebra import tanh
from subspace_tuning.methods import Method, method


@method(name="scaled_tanh_adapter", count="n + r * (n + m) + 1", citation="a person's own, declared by the tests")
def own_method(W, D1, t, A, B):
    """Scale the inputs, and add a bottleneck with a trainable scale."""
    return D1 @ W + t * A @ tanh @ B


FORMULAS = (
    "D1 @ W @ D2 + s * A @ B",
    "W @ (I + s * A @ B)",
    "W + s * (W * (A @ B))",
    "W + s * (A @ B - A0 @ B0)",
    "W + Delta",
    "W + s * A @ B @ W",
    "W @ R",
    "unit(D1 @ W) @ D",
    "affine(W, b) @ (I + affine(A, a) @ gelu @ affine(B, c))",
    "affine(W @ D2, b + delta)",
    "U @ diag(sigma) @ V.T + s * A @ D @ B",
    "U_r @ diag(sigma) @ V_r.T + rest",
    "W + U @ diag(u) @ diag(v) @ V.T",
)

METHODS: tuple[Method, ...] = (*methods.every(), *(methods.from_formula(text, name=text) for text in FORMULAS))
LINEAR = tuple(case for case in METHODS if case.formula.is_linear)


def method_id(case: object) -> str | None:
    return case.name.replace(" ", "") if isinstance(case, Method) else None
