"""The paper's own tables as results, so that the same code judges its claims by its figures."""

from __future__ import annotations

from importlib import resources

import pandas as pd

from .results import Results

SOURCE = "arXiv:2407.05417v2, Tables II-IV"
TASKS = ("mnli", "sst2", "cola", "qqp", "qnli", "rte", "mrpc", "stsb")


def paper_results() -> Results:
    """Return the GLUE scores of arXiv 2407.05417v2, Tables II to IV: one per row, task, model and budget.

    Judge them by ``verdicts(..., unit="cells")``: they have no seeds. The scores are shares, a budget is the rank of
    LoRA. A row is named by its method, then + and a pattern that is added, or - and one of its own that is left out.
    Numbers of trained parameters are counts, not the paper's rounded shares (``subspace params --paper``).
    """
    with resources.files(__package__).joinpath("paper_glue.csv").open(encoding="utf-8") as file:
        printed = pd.read_csv(file)
    full = printed[printed["row"] == "full"].set_index("model")["trained"]
    runs = printed.melt(["model", "budget", "row", "trained"], list(TASKS), "task", "score")
    runs = runs.assign(
        run=[f"printed-{number}" for number in range(len(runs))],
        score=runs["score"] / 100,
        metric="as printed",
        per_mille=1000 * runs["trained"] / runs["model"].map(full),
        rate=float("nan"),
        seed=0,
        stage="report",
        state="done",
    )
    return Results(runs)
