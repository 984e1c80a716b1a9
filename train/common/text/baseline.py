"""The baseline that a text classifier has to beat: TF-IDF and logistic regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from train.common.classification import Scores
from train.common.text.labelled_text import LabelledText

STRENGTHS = (1.0, 3.0, 10.0, 30.0)
"""Inverse regularisation strengths tried; the validation split picks one."""


@dataclass(frozen=True)
class Baseline:
    """How the baseline did."""

    test: Scores
    validation: Scores
    strength: float
    """The inverse regularisation strength that did best on the validation split."""

    def describe(self) -> str:
        """One line for people."""
        return (
            "TF-IDF (words and pairs of words) + logistic regression "
            f"(C={self.strength:g} by validation): "
            f"test accuracy {self.test.accuracy:.4f}, macro F1 {self.test.macro_f1:.4f}"
        )


def tfidf_baseline(data: LabelledText) -> Baseline:
    """Fits on the training split, picks the regularisation on validation, measures on test."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectoriser = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]"
    )
    texts = {split: [text for text, _ in examples] for split, examples in data.splits.items()}
    labels = {split: [label for _, label in examples] for split, examples in data.splits.items()}
    features = {"train": vectoriser.fit_transform(texts["train"])}
    for split in ("validation", "test"):
        features[split] = vectoriser.transform(texts[split])

    def scores(model: Any, split: str) -> Scores:
        return Scores.of(labels[split], model.predict(features[split]), len(data.labels))

    models = {
        strength: LogisticRegression(
            C=strength, solver="saga", tol=1e-2, max_iter=100, random_state=0
        ).fit(features["train"], labels["train"])
        for strength in STRENGTHS
    }
    validation = {strength: scores(model, "validation") for strength, model in models.items()}
    best = max(STRENGTHS, key=lambda strength: validation[strength].accuracy)
    return Baseline(scores(models[best], "test"), validation[best], best)
