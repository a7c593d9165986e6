"""The cost of operations, per type of device.

Costs are in floating-point operations of a product. Everything else is converted to them: moving a number to or from
memory, launching an operation, and the hand-written kernel, whose gradient is Python. For few rows the latter two
dominate.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CostModel:
    """The prices on one type of device, in floating-point operations.

    ``move`` is for one number to or from memory, ``call`` for launching one operation, ``kernel`` for one training step
    of the hand-written kernel.
    """

    move: float
    call: float
    kernel: float

    def product(self, rows: int, middle: int, columns: int, passes: int = 1) -> float:
        """Return the cost of ``passes`` products of these sizes."""
        work = 2.0 * rows * middle * columns + self.move * (rows * middle + middle * columns + rows * columns)
        return (work + self.call) * passes

    def elements(self, count: int, passes: int = 1) -> float:
        """Return the cost of ``passes`` passes over ``count`` numbers."""
        return (self.move * count + self.call) * passes


CPU = CostModel(move=40.0, call=1e6, kernel=2.5e7)
"""Estimates for current processors; ``benchmarks/planner`` measures how good the choices are."""

# A current data-centre GPU holds about 2e14 operations a second in bfloat16 products and moves 2e12 bytes a second: a
# bfloat16 number takes 1e-12 s, in which it does 200 operations. From Python, an operation of torch's is launched every
# 5e-6 s, or 1e9 operations. The kernel launches no more of them than its own products and passes, which are counted
# one by one, but the Python around its gradient takes the host about 1e-4 s for a step.
CUDA = CostModel(move=200.0, call=1e9, kernel=2e10)


@dataclass(frozen=True)
class _MultiplyAdds(CostModel):
    """Multiplications and additions alone, a pass over numbers counted as one of each."""

    def product(self, rows: int, middle: int, columns: int, passes: int = 1) -> float:
        return float(rows * middle * columns * passes)

    def elements(self, count: int, passes: int = 1) -> float:
        return float(count * passes)


MULTIPLY_ADDS = _MultiplyAdds(move=0.0, call=0.0, kernel=0.0)
"""Not a device, but a count of multiply-adds, to compare ways of evaluation."""


def cost_model(device_type: str) -> CostModel:
    """Return the prices of a device such as "cpu" or "cuda"; other accelerators count as CUDA does."""
    return CPU if device_type in ("cpu", "meta") else CUDA
