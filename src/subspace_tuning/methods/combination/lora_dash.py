"""LoRA-Dash: LoRA plus the directions of W that it changes most (Si et al., arXiv 2409.01035)."""

from ...algebra import diag
from ..registry import method


@method(category="combination", count="r * (n + m) + q", schedule="lora_dash", citation="arXiv:2409.01035")
def lora_dash(W, A, B, U_k, d, V_k, s):
    """Run LoRA for some steps; then the schedule chooses q singular directions of W, with values d that start at 0."""
    return W + s * A @ B + U_k @ diag(d) @ V_k.T
