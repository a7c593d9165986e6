"""Figures of texts against reference texts, all between 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..extras import needs


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
    """Return SQuAD's exact match and F1, for the best reference of each question.

    Args:
        predictions: an answer per question; empty for "no answer".
        references: the correct answers; empty for a question without an answer.
    """
    needs("scoring answers", "language", "torchmetrics")
    from torchmetrics.functional.text import squad as scores

    found: list[Any] = [{"id": str(n), "prediction_text": text} for n, text in enumerate(predictions)]
    texts = [list(wanted) or [""] for wanted in references]
    wanted: list[Any] = [
        {"id": str(n), "answers": {"text": one, "answer_start": [0] * len(one)}} for n, one in enumerate(texts)
    ]
    return {name: float(score) / 100 for name, score in scores(found, wanted).items()}
