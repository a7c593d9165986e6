"""The page of a comparison: what it says is what the runs say, whatever they are called, and it needs nothing else."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser
from scipy import stats

from subspace_tuning.errors import SubspaceError
from subspace_tuning.report.page import Page, Verdict, write_page
from subspace_tuning.report.page.compact import config_columns, curve_columns
from subspace_tuning.report.page.document import document
from subspace_tuning.report.page.summary import ENTRY, averages, cells, entries

from .browsers import drawn, in_chromium, opened
from .simulated import ROWS, TASKS, VERDICTS, simulated

PUBLISHED = pd.DataFrame([{"task": "cola", "row": "lora", "source": "roberta-base", "score": 0.6234}])
# Names that end what they are written into, where anything is taken for markup or code.
HOSTILE = [
    "</script><script>window.broken = 1</script>",
    "<img src=x onerror='window.broken = 1'>",
    "<!--<script>",
    "{{data}} ${window.broken = 1} \\u003c",
    "datum.x'\"`]; window.broken = 1 //",
    "\u2028 φ(W) → 表",
]


def data_of(html: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        html.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    )
    return found


# What is written


def decoded(columns: list[dict[str, Any]], number: int) -> dict[str, Any]:
    """Return a config as the page's script puts it together."""
    config: dict[str, Any] = {}
    for column in columns:
        if column["at"][number] >= 0:
            inner = config
            for key in column["path"][:-1]:
                inner = inner.setdefault(key, {})
            inner[column["path"][-1]] = column["of"][column["at"][number]]
    return config


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=4))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=4))
def test_configs_come_back_from_their_columns(configs: list[dict[str, Any]]) -> None:
    columns = json.loads(json.dumps(config_columns(configs)))
    assert [decoded(columns, number) for number in range(len(configs))] == configs


curves = st.lists(st.floats(-1e6, 1e6), max_size=1000)


@settings(deadline=None, max_examples=50)
@given(st.lists(curves, min_size=1, max_size=4))
def test_long_curves_keep_their_span_and_their_mean(losses: list[list[float]]) -> None:
    found = curve_columns([list(enumerate(one)) for one in losses])
    for number, one in enumerate(losses):
        steps, shown = found["steps"][found["at"][number]], found["losses"][number]
        assert len(steps) == len(shown) <= 100
        if len(one) <= 100:
            assert [*steps] == [*range(len(one))] and shown == pytest.approx(one, rel=1e-3)
        else:
            assert 0 <= steps[0] < steps[-1] < len(one)
            assert min(one) - 1e3 <= min(shown) <= max(shown) <= max(one) + 1e3


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 6))
def test_means_and_intervals_are_scipys(seed: int, count: int) -> None:
    runs = simulated({"lora": ROWS["lora"], "ssb": ROWS["ssb"]}, seeds=count, rates=1).runs
    runs = runs.assign(budget="as given", score=np.random.default_rng(seed).normal(size=len(runs)), state="done")
    lines = entries(runs)
    report = runs[runs["stage"] == "report"]
    by_seed = report.groupby(["row", "seed"])["score"].mean()
    wanted = {(row, task): group["score"].to_numpy() for (row, task), group in report.groupby(["row", "task"])}
    wanted |= {(row, None): by_seed[row].to_numpy() for row in lines["row"]}
    found = pd.concat([cells(runs, lines), averages(runs, lines)])
    assert len(found) == len(wanted) == 2 * (len(TASKS) + 1)
    for one in found.itertuples():
        task = one.task if isinstance(one.task, str) else None
        scores = wanted[lines["row"][one.entry], task]
        assert one.score == pytest.approx(scores.mean()) and one.count == count
        if count == 1:
            assert math.isnan(one.low) and math.isnan(one.high)
        else:
            ends = stats.t.interval(0.95, count - 1, loc=scores.mean(), scale=stats.sem(scores))
            assert (one.low, one.high) == pytest.approx(ends)


def test_a_row_without_every_task_has_no_average() -> None:
    runs = simulated({"lora": ROWS["lora"], "ssb": ROWS["ssb"]}, seeds=2, rates=1).runs.assign(budget="as given")
    lacking = runs[~((runs["row"] == "ssb") & (runs["task"] == "rte"))]
    lines = entries(lacking)
    assert list(lines["row"][averages(lacking, lines)["entry"]]) == ["lora"]


def test_failed_runs_are_counted() -> None:
    runs = simulated(seeds=3).runs.assign(budget="as given")
    runs.loc[(runs["row"] == "ssb") & (runs["task"] == "rte"), "state"] = "failed"
    lines = entries(runs)
    found = cells(runs, lines).merge(lines, left_on="entry", right_index=True).set_index(["row", "task"])
    assert list(lines.columns[:3]) == ENTRY
    assert (found.loc[("ssb", "rte"), ["count", "failed"]] == [0, 3]).all()
    assert (found.loc[("full", "rte"), ["count", "failed"]] == [2, 1]).all()


def test_a_run_in_two_cells_has_one_config_and_one_curve() -> None:
    page = simulated({"ssb": ROWS["ssb"], "lora": ROWS["lora"]}, seeds=2, rates=1)
    again = page.runs[page.runs["row"] == "ssb"].assign(budget=300_000.0)
    data = data_of(document(replace(page, runs=pd.concat([again, page.runs], ignore_index=True))))
    assert data["entries"]["budget"]["of"] == ["300,000", "as given"]
    places = data["runs"]["run"]["at"]
    assert len(places) == len(again) + len(page.runs) and len(data["curves"]["at"]) == len(page.runs)
    for run, place in zip([*again["run"], *page.runs["run"]], places, strict=True):
        assert decoded(data["configs"], place) == page.config(run)
        steps = data["curves"]["steps"][data["curves"]["at"][place]]
        assert [*zip(steps, data["curves"]["losses"][place], strict=True)] == [
            (step, pytest.approx(loss, rel=1e-3)) for step, loss in page.curve(run)
        ]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"runs": simulated(seeds=1).runs.drop(columns=["rate", "head"])}, "frame of runs has no column head, rate"),
        ({"runs": simulated(seeds=1).runs.iloc[:0]}, "there are no runs to show"),
        ({"runs": pd.concat([simulated(seeds=1).runs] * 2)}, "is twice in one cell of the page's frame of runs"),
        ({"intervals": PUBLISHED}, "frame of intervals has no column baseline, difference, low, high"),
        ({"published": pd.DataFrame({"row": ["lora"]})}, "frame of published has no column task, source, score"),
        ({"verdicts": [Verdict("a claim", "true", "", "")]}, "supported, contradicted, undecided, not 'true': a claim"),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_one_line(change: Mapping[str, Any], line: str) -> None:
    page = simulated(seeds=1)
    with pytest.raises(SubspaceError, match=re.escape(line)) as refused:
        replace(page, **change)
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SubspaceError, match="does not exist"):
        write_page(simulated(seeds=1), tmp_path / "none" / "page.html")
    with pytest.raises(SubspaceError, match="is a folder"):
        write_page(simulated(seeds=1), tmp_path)


def hostile() -> Page:
    """Return a page all of whose texts are hostile."""
    task, model, metric, claim = HOSTILE[:4]
    page = simulated({name: (name, 100 * n, 0.1 * n) for n, name in enumerate(HOSTILE)}, ["cola"], seeds=2, rates=2)
    runs = page.runs.assign(task=task, model=model, metric=metric)
    verdicts = [Verdict(claim, "undecided", task, model)]
    assert page.intervals is not None
    intervals = pd.DataFrame(
        [{"task": task, "row": row, "baseline": model, "difference": 0.1, "low": 0.0, "high": 0.2} for row in HOSTILE]
    )
    published = pd.DataFrame([{"task": task, "row": HOSTILE[0], "source": metric, "score": 0.5}])

    def config(run: str) -> dict[str, Any]:
        return {name: dict.fromkeys([*HOSTILE, "__proto__"], name) for name in HOSTILE} | {"run": run}

    return Page(runs, config, page.curve, verdicts, intervals, published, title=claim)


def test_texts_stay_data() -> None:
    page = hostile()
    html = document(page)
    assert html.lower().count("</script") == 3 and "<!--" not in html
    data = data_of(html)
    assert data["entries"]["row"]["of"] == HOSTILE
    assert decoded(data["configs"], 0) == page.config(page.runs["run"].iloc[0])


# What is seen


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, Path]:
    page = simulated(published=PUBLISHED, title="A comparison")
    return page, write_page(page, tmp_path_factory.mktemp("pages") / "small.html")


def column(tab: Any, title: str) -> list[str]:
    """Return a column of the table of scores as it is written, without what stands below a score."""
    titles = tab.locator("#scores thead button").all_inner_texts()
    cells = tab.locator(f"#scores tbody tr > :nth-child({titles.index(title) + 1})").all_inner_texts()
    return [cell.split("\n")[0].split(" ±")[0] for cell in cells]


@in_chromium
def test_the_table_sorts_and_filters(browser: Browser, small: tuple[Page, Path]) -> None:
    page, file = small
    report = page.runs[(page.runs["stage"] == "report") & (page.runs["state"] == "done")]
    means = report.groupby(["row", "task"])["score"].mean()
    with opened(browser, file) as tab:
        assert tab.title() == "A comparison"
        assert column(tab, "row") == [*ROWS]
        assert column(tab, "cola") == [f"{means[row, 'cola']:.3f}".replace("-", "−") for row in ROWS]
        header = tab.locator("#scores thead th", has_text="cola")
        for order, down in (("descending", True), ("ascending", False)):
            header.get_by_role("button").press("Enter")
            assert header.get_attribute("aria-sort") == order
            assert column(tab, "row") == sorted(ROWS, key=lambda row: means[row, "cola"], reverse=down)
        best = max(ROWS, key=lambda row: means[row, "cola"])
        assert f"{means[best, 'cola']:.3f}" in tab.locator("#scores strong").all_inner_texts()
        tab.get_by_role("searchbox", name="Find").fill("LORA")
        assert {*column(tab, "row")} == {"lora", "flora"}
        assert tab.locator("#shown").inner_text().startswith(f"2 of {len(ROWS)} rows, ")
        tab.get_by_role("combobox", name="Published scores").select_option("roberta-base")
        assert tab.get_by_text("published 0.623").count() == 1
        tab.get_by_role("combobox", name="Task").select_option("mrpc")
        assert {*tab.locator("#runs tbody td:nth-child(3)").all_inner_texts()} == {"mrpc"}
        assert "cola" not in tab.locator("#scores thead button").all_inner_texts()
        tab.get_by_role("button", name="Reset").click()
        tab.locator("#shown", has_text=f"{len(ROWS)} of {len(ROWS)} rows").wait_for()
        assert {*column(tab, "row")} == {*ROWS}


@in_chromium
def test_the_verdicts_stand_on_top(browser: Browser, small: tuple[Page, Path]) -> None:
    with opened(browser, small[1]) as tab:
        assert tab.locator("main section").first.get_attribute("id") == "claims"
        shown = tab.locator("#verdicts li").all_inner_texts()
        for text, wanted in zip(shown, VERDICTS, strict=True):
            assert all(part in text for part in vars(wanted).values())
        assert tab.locator("#counted").inner_text() == "1 supported · 1 contradicted · 1 undecided"


@in_chromium
def test_every_chart_is_drawn_and_has_its_table(browser: Browser, small: tuple[Page, Path]) -> None:
    marks = {"parameters": len(ROWS), "cost": 2 * len(ROWS), "differences": 3 * (len(ROWS) - 1)}
    marks |= {"rates": 5 * len(ROWS) * 3, "losses": 8 * 3}
    with opened(browser, small[1]) as tab:
        for section, count in marks.items():
            charts = drawn(tab, section)
            kind = ".mark-line path" if section == "losses" else ".mark-symbol.role-mark path"
            assert tab.locator(f"#{section} svg {kind}").count() == count, section
            for chart in charts.all():
                assert chart.get_attribute("role") == "img" and len(chart.get_attribute("aria-label") or "") > 80
            for details in tab.locator(f"#{section} details").all():
                details.locator("summary").press("Enter")
                details.get_by_role("rowheader").first.wait_for()
                rows = details.get_by_role("table").get_by_role("row").count() - 1
                assert rows == (8 * 3 * 60 if section == "losses" else count // charts.count()), section


@in_chromium
def test_a_click_shows_the_exact_config(browser: Browser, small: tuple[Page, Path]) -> None:
    page, file = small
    with opened(browser, file) as tab:
        dialog = tab.get_by_role("dialog")
        config = dialog.get_by_label("Config")

        def shown() -> Any:
            run = dialog.locator("dd").first.inner_text()
            assert json.loads(config.inner_text()) == page.config(run)
            return page.runs.set_index("run").loc[run]

        drawn(tab, "parameters")
        tab.locator("#parameters .mark-symbol path").last.click()
        assert dialog.get_by_role("heading").first.inner_text() == shown()["row"] and shown()["stage"] == "report"
        dialog.get_by_role("combobox", name="Run").select_option(index=3)
        assert shown()["seed"] == 3
        tab.keyboard.press("Escape")
        assert not dialog.is_visible()
        drawn(tab, "rates")
        tab.locator("#rates .mark-symbol.role-mark path").first.click()
        assert shown()["stage"] == "tuning"
        dialog.get_by_role("button", name="Close").click()
        opener = tab.locator("#runs tbody button").nth(2)
        opener.press("Enter")
        assert shown().name == page.runs["run"].iloc[2]
        tab.keyboard.press("Escape")
        assert tab.evaluate("document.activeElement.textContent") == opener.inner_text()


@in_chromium
def test_hostile_names_are_shown_as_they_are(browser: Browser, tmp_path: Path) -> None:
    page = hostile()
    with opened(browser, write_page(page, tmp_path / "page.html")) as tab:
        shown = tab.locator("#scores tbody button")
        assert shown.all_text_contents() == HOSTILE
        marks = {"parameters": 6, "cost": 12, "differences": 6, "rates": 12}
        for section in (*marks, "losses"):
            drawn(tab, section)
        assert {section: tab.locator(f"#{section} .mark-symbol.role-mark path").count() for section in marks} == marks
        tab.locator("#parameters .mark-symbol path").last.hover()
        tab.locator("#runs tbody button").first.click()
        found = json.loads(tab.get_by_label("Config").text_content() or "")
        assert found.keys() == {*HOSTILE, "run"} and all(found[name]["__proto__"] == name for name in HOSTILE)
        assert tab.evaluate("window.broken") is None and tab.locator("img").count() == 0


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of more than 5,000 runs: 40 rows at two budgets, tuned over eight rates."""
    names = ["lora", *(f"row {number}" for number in range(39))]
    rows = {name: (f"method {n % 19}", 1000 * 2 ** (n % 14), 0.3 + 0.01 * n) for n, name in enumerate(names)}
    page = simulated(rows, rates=8, budgets=(2, 8))
    assert len(page.runs) > 5000
    return write_page(page, tmp_path_factory.mktemp("pages") / "large.html")


@in_chromium
@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_of_five_thousand_runs_opens_soon(width: int, scheme: Any, browser: Browser, large: Path) -> None:
    """In less than three seconds of the browser's main thread, from less than 10 MB."""
    assert large.stat().st_size < 10e6
    with opened(browser, large, width, scheme) as tab:
        session = tab.context.new_cdp_session(tab)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        tab.reload()
        tab.get_by_role("status").first.filter(has_text="row").wait_for()
        metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
        assert metrics["TaskDuration"] < 3 and metrics["Nodes"] < 20_000
        for section in ("parameters", "cost", "differences", "rates", "losses"):
            drawn(tab, section)
