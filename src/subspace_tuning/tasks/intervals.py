"""Confidence intervals of accuracies."""

from __future__ import annotations

from scipy.stats import binomtest


def accuracy_figures(right: int, rows: int) -> dict[str, float]:
    """Return the accuracy with its 95 % Wilson interval.

    Examples:
        >>> {name: round(figure, 3) for name, figure in accuracy_figures(8, 10).items()}
        {'accuracy': 0.8, 'accuracy_low': 0.49, 'accuracy_high': 0.943}
    """
    interval = binomtest(right, rows).proportion_ci(0.95, method="wilson")
    return {"accuracy": right / rows, "accuracy_low": float(interval.low), "accuracy_high": float(interval.high)}
