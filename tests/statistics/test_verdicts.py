"""Claims: what a file may say, and how often a verdict is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from subspace_tuning.errors import SubspaceError
from subspace_tuning.statistics import (
    Claim,
    Results,
    applicable,
    detectable,
    paper_claims,
    paper_results,
    read_claims,
    verdicts,
)
from subspace_tuning.statistics.claims import KINDS
from subspace_tuning.statistics.verdicts import as_frame, spread_test

from .simulated import at_most, lines, results, within

FEW_AND_MANY = [100, pytest.param(3000, marks=pytest.mark.slow)]
SPREAD = 0.02
# A claim, and levels of the rows a, b, c (and spreads) at the edge: any lower, and the claim would be false.
EDGES = {
    "above": (Claim("above", "above", ("a",), ("b", "c")), (0.8, 0.8, 0.7)),
    "above by a margin": (Claim("margin", "above", ("a",), ("b",), margin=0.05), (0.85, 0.8, 0.7)),
    "equivalent": (Claim("alike", "equivalent", ("a", "b"), margin=0.05), (0.85, 0.8, 0.7)),
    "share": (Claim("share", "share_of", ("a",), ("b",), share=0.9), (0.72, 0.8, 0.7)),
    "ordering": (Claim("ordered", "ordering", ("a", "b", "c")), (0.8, 0.8, 0.7)),
    "spread": (Claim("steadier", "spread_below", ("a",), ("b",)), (0.8, 0.8, 0.7)),
}


def drawn(rng: np.random.Generator, levels: tuple[float, ...]) -> dict[str, np.ndarray]:
    return {row: rng.normal(level, SPREAD, (2, 5)) for row, level in zip("abc", levels, strict=True)}


@pytest.mark.parametrize("trials", FEW_AND_MANY)
@pytest.mark.parametrize("name", EDGES)
def test_at_the_edge_a_verdict_is_wrong_as_seldom_as_stated(name: str, trials: int) -> None:
    claim, levels = EDGES[name]
    rng = np.random.default_rng(0)
    found = [verdicts(results(drawn(rng, levels)), [claim])[0].verdict for _ in range(trials)]
    assert at_most(found.count("supported"), trials, 0.05 if claim.kind == "equivalent" else 0.025)
    assert at_most(found.count("contradicted"), trials, 0.025)


@pytest.mark.parametrize("trials", FEW_AND_MANY)
def test_a_claim_is_supported_at_the_power_that_it_states(trials: int) -> None:
    """Over both tasks' means of five seeds; and its opposite is contradicted as often."""
    rng = np.random.default_rng(0)
    levels = (0.8 + detectable(5, SPREAD), 0.8, 0.7)  # the difference of means of two tasks varies as one score does
    claims = [Claim("right", "above", ("a",), ("b",)), Claim("wrong", "above", ("b",), ("a",))]
    for _ in range(2):
        found = [[one.verdict for one in verdicts(results(drawn(rng, levels)), claims)] for _ in range(trials)]
        assert within(sum(one == ["supported", "contradicted"] for one in found), trials, 0.8)
        assert all(one in (["supported", "contradicted"], ["undecided", "undecided"]) for one in found)


def test_the_least_true_part_decides() -> None:
    levels = drawn(np.random.default_rng(0), (0.9, 0.8, 0.7))
    claims = [
        Claim("all", "above", ("a",), ("b", "c")),
        Claim("one part is false", "above", ("b",), ("a", "c")),
        Claim("order", "ordering", ("a", "b", "c")),
        Claim("no order", "ordering", ("a", "c", "b")),
        Claim("far apart", "equivalent", ("a", "b", "c"), margin=0.03),
        Claim("alike", "equivalent", ("a", "b", "c"), margin=0.5),
    ]
    found = verdicts(results(levels), claims)
    expected = ["supported", "contradicted", "supported", "contradicted", "contradicted", "supported"]
    assert [one.verdict for one in found] == expected
    assert found[0].figure.startswith("a - b: ")
    assert found[1].figure.startswith("b - a: ")
    assert found[3].figure.startswith("c - b: ")


def test_the_opposite_of_one_part_is_corrected_for_the_number_of_parts() -> None:
    """Of 0.02, one-sided: enough for one pair, too little for two."""
    spread = 0.01 * np.arange(-2, 3)
    scores = {"a": 0.8 - stats.t.isf(0.02, 4) * stats.sem(spread) + spread, "b": np.full(5, 0.8), "c": np.full(5, 0.7)}
    found = results({row: [of_row] for row, of_row in scores.items()})
    alone, of_two = verdicts(found, [Claim(than, "above", ("a",), tuple(than)) for than in ("b", "bc")])
    assert (alone.verdict, of_two.verdict) == ("contradicted", "undecided")


@pytest.mark.parametrize("trials", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_equal_spreads_differ_as_often_as_stated(trials: int) -> None:
    """Also of correlated rows, and of cells on different scales."""
    rng, less, more, steadier = np.random.default_rng(0), 0, 0, 0
    for _ in range(trials):
        shared = rng.normal(0, 1, (2, 6))
        cells = [
            (scale * (s + rng.normal(0, 1, 6)), scale * (s + rng.normal(0, 1, 6)))
            for scale, s in zip((1, 9), shared, strict=True)
        ]
        below, above, _ = spread_test(cells)
        less, more = less + (below <= 0.025), more + (above <= 0.025)
        steadier += spread_test([(0.1 * first, second) for first, second in cells])[0] <= 0.025
    assert within(less, trials, 0.025)
    assert within(more, trials, 0.025)
    assert steadier > 0.9 * trials


def test_the_spread_of_one_cell_is_pitmans_and_morgans() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 7))
    below, above, ratio = spread_test([(first, second)])
    known = stats.pearsonr(first + second, first - second).pvalue
    assert 2 * min(below, above) == pytest.approx(known)
    assert ratio == pytest.approx(first.std() / second.std())
    assert spread_test([(first, first)])[:2] == (1, 1)


# The paper's own tables

SIGNS = {  # from the tables, counted apart: above the margin, below it (of equivalence: its negative), the verdict
    "SSB is above (IA)^3 and SSL.": (21, 2, "supported"),
    "AdaLoRA is above LoRA at a matched budget.": (7, 5, "undecided"),
    "FLoRA is above LoRA at a matched budget.": (12, 0, "supported"),
    "DoRA is above LoRA at the same rank.": (9, 3, "undecided"),
    "The orthogonal pattern raises LoRA.": (12, 0, "supported"),
    "The diagonal pattern raises LoRA.": (10, 2, "supported"),
    "The nonlinear pattern raises LoRA.": (9, 3, "undecided"),
    "The orthogonal pattern raises TriLoRA.": (12, 0, "supported"),
    "The orthogonal pattern raises AdaLoRA.": (11, 1, "supported"),
    "(IA)^3 and SSL perform alike.": (20, 2, "contradicted"),
    "SSB reaches 99 % of full fine-tuning.": (11, 13, "undecided"),
    "TriLoRA, AdaLoRA and FLoRA are above LoRA at a matched budget.": (7, 5, "undecided"),
    "Fewer constraints are better: FLoRA above TriLoRA above LoRA.": (8, 4, "undecided"),
    "SAM-PARSER, which moves singular values alone, is far below the methods that move singular vectors.": (
        24,
        0,
        "supported",
    ),
}


def test_the_papers_claims_by_its_own_tables() -> None:
    found = {one.claim.claim: one for one in verdicts(paper_results(), paper_claims(), "cells")}
    for sentence, (above, below, verdict) in SIGNS.items():
        assert re.search(rf"above [\d.]+ in {above} and below [-\d.]+ in {below} of ", found[sentence].figure), sentence
        assert found[sentence].verdict == verdict
    page = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text(encoding="utf-8")
    assert all(f"| {one.claim.claim} | {one.verdict} | {one.figure} |" in page for one in found.values())
    spread = [one for one in found.values() if one.claim.kind == "spread_below"]
    assert len(spread) == 3
    assert {(one.verdict, one.figure) for one in spread} == {
        ("undecided", "one score per cell has no spread over seeds")
    }
    assert set(found) == {*SIGNS, *(one.claim.claim for one in spread)}


def test_printed_tables_are_whole() -> None:
    runs = paper_results().runs
    assert len(runs) == 174 * 8
    assert runs.groupby("model").size().nunique() == 1
    average = runs[runs["row"] == "ssb"].groupby("model")["score"].mean()
    assert average.round(4).to_dict() == {"roberta-base": 0.8472, "deberta-v3-base": 0.8749, "roberta-large": 0.8812}


# Files

GOOD = "claims:\n- {claim: mine beats lora, kind: above, rows: mine, than: [lora], matched: false}\n"


def test_anyones_claims_are_read(tmp_path: Path) -> None:
    file = tmp_path / "claims.yaml"
    file.write_text(GOOD)
    assert read_claims(file) == [Claim("mine beats lora", "above", ("mine",), ("lora",), matched=False)]
    [judged] = verdicts(results({"mine": [[0.9, 0.91, 0.9]], "lora": [[0.8, 0.82, 0.8]]}), read_claims(file))
    assert judged.verdict == "supported"
    assert as_frame([judged]).to_dict("records")[0]["figure"] == judged.figure


BAD = {
    "{file}: No such file or directory": None,
    "{file} must be a mapping with a list under the key 'claims'": "- a",
    "{file} has no claims": "claims: []",
    "claim 1 of {file} must be a mapping": "claims: [a]",
    "claim 1 of {file}: unknown key 'row'; did you mean rows": GOOD.replace("rows", "row"),
    "claim 1 of {file}: kind is 'over'; ": GOOD.replace("above", "over"),
    "claim 1 of {file}: above needs than": GOOD.replace("than: [lora], ", ""),
    "claim 1 of {file}: rows must be names of rows, not 3": GOOD.replace("rows: mine", "rows: 3"),
    "claim 1 of {file}: matched is 'maybe', which is not of the type bool": GOOD.replace("false", "maybe"),
    "claim 1 of {file}: margin is True, which is not of the type float": GOOD.replace("matched: false", "margin: true"),
    "claim 1 of {file}: a share is positive, and a margin at least 0": GOOD.replace("matched: false", "margin: -1"),
    "claim 1 of {file}: above needs at least two different rows": GOOD.replace("[lora]", "mine"),
    "claim 1 of {file}: equivalent needs a positive margin": (
        "claims: [{claim: same, kind: equivalent, rows: [a, b], margin: 0}]"
    ),
    "{file} has the claim 'mine beats lora' twice": GOOD + GOOD.partition("\n")[2],
    "{file} cannot be read: ": "claims: [",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_claims_are_refused_in_one_line(line: str, tmp_path: Path) -> None:
    file = tmp_path / "claims.yaml"
    if BAD[line] is not None:
        file.write_text(BAD[line])
    with pytest.raises(SubspaceError) as error:
        read_claims(file)
    told = str(error.value)
    assert line.format(file=file) in told
    assert "\n" not in told


def test_a_claim_about_a_row_that_is_not_there_is_refused() -> None:
    found = results({row: np.random.default_rng(0).random((1, 3)) for row in ("lora", "ssb")})
    with pytest.raises(SubspaceError) as error:
        verdicts(found, [Claim("x", "above", ("ssb",), ("lorra",))])
    assert (
        str(error.value)
        == "the claim 'x' is about row 'lorra', which has no results; did you mean lora? Known: lora, ssb"
    )
    there, missing = applicable(paper_claims(), found.rows)
    assert not there
    assert len(missing) == len(paper_claims())


def test_every_kind_is_claimed_and_every_claim_has_its_source() -> None:
    assert {claim.kind for claim in paper_claims()} == set(KINDS)
    assert all(claim.source.startswith("arXiv:2407.05417v2") for claim in paper_claims())


def test_what_cannot_be_judged_is_undecided_with_the_reason() -> None:
    claim = Claim("x", "above", ("a",), ("b",))
    apart = pd.DataFrame([*lines("a", [[0.8] * 3], ["cola"]), *lines("b", [[0.8] * 3], ["rte"])])
    [judged] = verdicts(Results(apart), [claim])
    assert (judged.verdict, judged.figure) == ("undecided", "a and b have no task, model and budget in common")
