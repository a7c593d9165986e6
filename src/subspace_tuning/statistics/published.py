"""The paper's own tables as results, so that the same code judges its claims by its figures."""

from __future__ import annotations

from importlib import resources

import pandas as pd

from .results import COLUMNS, Results

SOURCE = "arXiv:2407.05417v2, Tables II-IV"
TASKS = ("mnli", "sst2", "cola", "qqp", "qnli", "rte", "mrpc", "stsb")


def paper_results() -> Results:
    """Return the GLUE scores of arXiv 2407.05417v2, Tables II to IV: one per row, task, model and budget.

    Judge them by ``verdicts(..., unit="cells")``: they have no seeds. The scores are shares, a budget is the rank of
    LoRA. A row is named by its method, then + and a pattern that is added, or - and one of its own that is left out.
    Numbers of trained parameters are left out (``subspace params --paper`` has them): rows of one budget count as
    matched, as in the paper.
    """
    with resources.files(__package__).joinpath("paper_glue.csv").open(encoding="utf-8") as file:
        printed = pd.read_csv(file)
    runs = printed.melt(["model", "budget", "row"], list(TASKS), "task", "score")
    runs = runs.assign(
        run=[f"printed-{number}" for number in range(len(runs))],
        score=runs["score"] / 100,
        metric="as printed",
        trained=float("nan"),
        rate=float("nan"),
        seed=0,
        stage="report",
        state="done",
    )
    return Results(runs[[*COLUMNS]])
