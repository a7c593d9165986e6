"""Figures of texts against the texts that were wanted, all between 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..extras import needs

EXTRA = "language"
"""The extra that the figures need."""


def overlap(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return ROUGE, BLEU, chrF and the share of exact matches.

    ROUGE is F1 with Porter's stemmer, of the reference that gives the most; it knows the letters a to z and digits
    alone. BLEU and chrF are sacrebleu's of the whole corpus.

    Args:
        predictions: a text per row.
        references: the texts that would be right, one or more per row.
    """
    needs("the score of generated texts", EXTRA, "rouge-score", "sacrebleu")
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(names, use_stemmer=True)
    rouge = [scorer.score_multi(wanted, text) for text, wanted in zip(predictions, references, strict=True)]
    most = max(map(len, references))
    streams = [[wanted[n] if n < len(wanted) else "" for wanted in references] for n in range(most)]  # "" for none
    exact = [text in wanted for text, wanted in zip(predictions, references, strict=True)]
    return {
        **{name: float(np.mean([found[name].fmeasure for found in rouge])) for name in names},
        "bleu": sacrebleu.corpus_bleu(predictions, streams).score / 100,
        "chrf": sacrebleu.corpus_chrf(predictions, streams).score / 100,
        "exact_match": float(np.mean(exact)),
    }


def squad(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return SQuAD's exact match and F1, each of the reference that gives the most.

    Args:
        predictions: an answer per question; an empty one says that there is none.
        references: the right answers, none where the question has no answer.
    """
    needs("the score of answers", EXTRA, "torchmetrics")
    from torchmetrics.functional.text import squad as scores

    found: list[Any] = [{"id": str(n), "prediction_text": text} for n, text in enumerate(predictions)]
    texts = [list(wanted) or [""] for wanted in references]
    wanted: list[Any] = [
        {"id": str(n), "answers": {"text": one, "answer_start": [0] * len(one)}} for n, one in enumerate(texts)
    ]
    return {name: float(score) / 100 for name, score in scores(found, wanted).items()}
