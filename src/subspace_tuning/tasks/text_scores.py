"""Figures of texts against reference texts, all between 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..extras import needs
from .intervals import Figure


def overlap(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return ROUGE, BLEU, chrF and the share of exact matches.

    ROUGE is F1 with Porter's stemmer, for the best reference of each row; it ignores all but a to z and digits. BLEU
    and chrF are sacrebleu's corpus scores.

    Args:
        predictions: a text per row.
        references: one or more correct texts per row.
    """
    needs("scoring generated texts", "language", "rouge-score", "sacrebleu")
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(names, use_stemmer=True)
    rouge = [scorer.score_multi(wanted, text) for text, wanted in zip(predictions, references, strict=True)]
    streams = _streams(references)
    exact = [text in wanted for text, wanted in zip(predictions, references, strict=True)]
    return {
        **{name: float(np.mean([found[name].fmeasure for found in rouge])) for name in names},
        "bleu": sacrebleu.corpus_bleu(predictions, streams).score / 100,
        "chrf": sacrebleu.corpus_chrf(predictions, streams).score / 100,
        "exact_match": float(np.mean(exact)),
    }


def chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Figure:
    """Return the corpus chrF of ``overlap`` as a function of rows, whose n-grams are counted once."""
    needs("scoring generated texts", "language", "sacrebleu")
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    counts = np.array(metric._extract_corpus_statistics(predictions, _streams(references)))
    return lambda rows: metric._compute_score_from_stats(counts[rows].sum(axis=0).tolist()).score / 100


def _streams(references: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the first reference of each row, the second, and so on; "" for a row without."""
    most = max(map(len, references))
    return [[wanted[n] if n < len(wanted) else "" for wanted in references] for n in range(most)]


def squad(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, NDArray[np.float64]]:
    """Return SQuAD's exact match and F1 of each question, for its best reference.

    Args:
        predictions: an answer per question; empty for "no answer".
        references: the correct answers; empty for a question without an answer.
    """
    needs("scoring answers", "language", "torchmetrics")
    from torchmetrics.functional.text import squad as scores

    found: dict[str, list[float]] = {"exact_match": [], "f1": []}
    for text, known in zip(predictions, references, strict=True):
        answers: Any = {"text": list(known) or [""], "answer_start": [0] * max(len(known), 1)}
        one = scores({"id": "", "prediction_text": text}, {"id": "", "answers": answers})
        for name, of in found.items():
            of.append(float(one[name]) / 100)
    return {name: np.array(of) for name, of in found.items()}
