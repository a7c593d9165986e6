"""First attempts at formulas that the language does not take, and what must hold for the message of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peft import get_peft_model
from torch import nn

from subspace_tuning import SubspaceConfig
from subspace_tuning.algebra import FormulaError

# Refused, and nothing but the message tells what to write.
ATTEMPTS = """
W * (1 + A @ B)
W + s * A0 @ B
B1 @ B2 @ B3 @ W
W + s * a @ b
-(2 * W)
2 * D1 @ W
W + s * affine(C, b) @ B
gate(t * W)
(D1 - D2) @ -W
W + lora(A)
W + exp(A)
W + softmax(A @ B)
W + sqrt(A) @ B
W + s * A % B
W + A @ B[0]
W / 2
W ** 2
W @ A @ B
W + s * A.t() @ B
W + s * A.T() @ B
W + torch.tanh(A) @ B
W + np.dot(A, B)
x @ W
W.T + B.T @ A.T
(W + s * A @ B
W + s * A @ B)
W + s A B
W += A @ B
phi = W + s * A @ B
W + s * (A, B)
W + s·A·B
W + s × A @ B
W + s * (A ⊙ B)
W + U @ diag(σ) @ Vᵀ
φ(W) = W + s * A @ B
ΔW + W
W + α * A @ B
W + s * A @ B^T
W + s * A @ B'
W + lambda * A @ B
W + 2A @ B
W + s * A @ B + bias
W + bias
W + d
True * W
W + 0 * A @ B
relu(W)
W @ (1 + diag(g))
W + alpha / r * A @ B
W + A @ sigmoid @ B
W + A @ relu(B)
(W + s * A @ B) / norm(W + s * A @ B) * D
D @ unit(W + s * A @ B)
unit(W + s * A @ B)
W * gate(L)
D1 @ W @ D1
U Σ Vᵀ
W₀ + s * A @ B
W ⊙ (1 + A B)
W + A ⊗ B
$W_0 + \\frac{\\alpha}{r} B A$
W * D
W + M * A @ B
sum([W, A @ B])
A @ B
W
W + keys @ A
W + lambda_ * A @ B
W + A @ B if 1 else W
""".strip().splitlines()

# The same as a string and as a function.
PAIRS: dict[str, Callable[..., Any]] = {
    "W + (1 - t) * A @ B": lambda W, t, A, B: W + (1 - t) * A @ B,
    "W + A @ B / 2": lambda W, A, B: W + A @ B / 2,
    "W + +A @ B": lambda W, A, B: W + +A @ B,
    "W + A @ B + C": lambda W, A, B, C: sum([W, A @ B, C]),
    "W + 2.0 * A": lambda W, A: W + np.float64(2) * A,
    "W + A * 2.0": lambda W, A: W + A * torch.tensor(2.0),
    "W * (1 + A @ B)": lambda W, A, B: W * (1 + A @ B),
    "W + A % B": lambda W, A, B: W + A % B,
    "W + A @ (B ** 2)": lambda W, A, B: W + A @ B**2,
    "W + A @ B[0]": lambda W, A, B: W + A @ B[0],
    "W + A[:, 1] @ B": lambda W, A, B: W + A[:, 1] @ B,
    "W + (A > B)": lambda W, A, B: W + (A > B),
    "W + (A == B)": lambda W, A, B: W + (A == B),
    "W + (A & B)": lambda W, A, B: W + (A & B),
    "W + ~A": lambda W, A: W + ~A,
    "W + A.t() @ B": lambda W, A, B: W + A.t() @ B,
    "W + A.T() @ B": lambda W, A, B: W + A.T() @ B,
    "W + A.foo @ B": lambda W, A, B: W + A.foo @ B,
    "W + A(B)": lambda W, A, B: W + A(B),
    "W + A / 0": lambda W, A: W + A / 0,
    "W + A / B": lambda W, A, B: W + A / B,
    "W @ 2": lambda W, A: W @ 2,
    "W + True * A": lambda W, A: W + True * A,
    "W + 'A'": lambda W, A: W + "A",
    "W + a @ b": lambda W, a, b: W + a @ b,
    "W + torch.tanh(A) @ B": lambda W, A, B: W + torch.tanh(A) @ B,
    "W + torch.matmul(A, B)": lambda W, A, B: W + torch.matmul(A, B),
    "W + np.dot(A, B)": lambda W, A, B: W + np.dot(A, B),
    "W + np.exp(A) @ B": lambda W, A, B: W + np.exp(A) @ B,
    "A @ B @ W": lambda A, B, W: A @ B @ W,
    "2 * W": lambda W: 2 * W,
}


def refusal(formula: str) -> FormulaError | None:
    """Return the error of a formula in a config, None if it is taken."""
    try:
        SubspaceConfig(formula=formula, target_modules=["0"], r=2)
    except FormulaError as error:
        return error
    return None


def check_works(formula: str, starts: dict[str, str] | None = None) -> None:
    """Attach a formula to a small model, which then computes what it did before."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 5))
    x = torch.randn(3, 6)
    wanted = base(x).detach()
    config = SubspaceConfig(formula=formula, starts=starts or None, target_modules=["0"], r=2)
    model = get_peft_model(base, config)
    assert torch.allclose(model(x), wanted, atol=1e-5), formula
    assert any(parameter.requires_grad for parameter in model.parameters())
