"""Whether explanations of a finished text classifier are true, measured and written to its run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from flax import nnx

from attnjax.focus.faithful import (
    Curve,
    Faithfulness,
    deletion_curve,
    insertion_curve,
    random_curves,
    spearman,
)
from train.common.result import load_model
from train.common.text.explaining import GRADIENTS, LEFT_OUT, MODULES, TextExplainer
from train.common.text.labelled_text import Example
from train.common.text.models import TextClassifier
from train.common.text.run import TextSide, load_text_side

EXAMPLES = "focus_examples.json"
RANDOM = "random"
_BATCH = 64


@dataclass(frozen=True)
class Explained:
    """One text, what its tokens are held to add, and how true that is."""

    index: int
    """Its place in the split."""
    label: int
    predicted: int
    tokens: tuple[str, ...]
    attributions: Mapping[str, np.ndarray]
    """By method, `[T]`."""
    curves: Mapping[str, tuple[Curve, Curve]]
    """By method, deletion and insertion of this text alone, `[1, K]`; `RANDOM` is the mean of
    several orders."""
    measured: Mapping[str, Mapping[str, float]]
    """By method, what `Faithfulness.of` takes, of this text; NaN where it is not defined."""
    gap: float
    """The sum of the integrated gradients less `change`; exact integrals would leave none."""
    change: float
    """The log odds of this text less those of a text of unknown words."""


def explain_texts(
    run_dir: Path, examples: Sequence[Example], *, measured: int, seed: int
) -> list[Explained]:
    """Explains texts drawn at random with the best checkpoint of a run.

    Args:
        run_dir: a run directory of text classification.
        examples: labelled texts.
        measured: how many to draw, without replacement; all of them if there are fewer.
        seed: of all that is drawn.

    Returns:
        The texts, in the order in which they were drawn.

    Raises:
        ValueError: the directory is not one of a text-classification run.
        BrokenCheckpointError: it has no checkpoint that can be read.
    """
    side = load_text_side(run_dir)
    explainer = TextExplainer(cast(TextClassifier, load_model(side.build, run_dir)))
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(examples))[:measured]
    tokens = side.encoder.tokeniser.encode_batch([examples[i].text for i in drawn])
    # Texts of like length together: a batch is padded to its longest.
    order = np.argsort([len(t.ids) for t in tokens], kind="stable")
    found: dict[int, Explained] = {}
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        some = [(int(drawn[row]), examples[drawn[row]], tokens[row].pieces) for row in rows]
        explained = _explain_batch(side, explainer, some, int(rng.integers(2**31)))
        found |= dict(zip(rows.tolist(), explained, strict=True))
    return [found[row] for row in range(len(drawn))]


def _explain_batch(
    side: TextSide,
    explainer: TextExplainer,
    rows: Sequence[tuple[int, Example, Sequence[str]]],
    seed: int,
) -> Iterator[Explained]:
    """Explains up to `_BATCH` texts: their places in the split, the texts, their tokens."""
    texts = [example.text for _, example, _ in rows]
    # One batch size, so that the last batch does not compile anew.
    padded = [*texts, *[texts[-1]] * (_BATCH - len(texts))]
    batch = side.encoder.pad(side.encoder.encode(padded))
    inputs, lengths = explainer.inputs(batch), batch["length"]
    # Another random model for each batch, so that none is special.
    fresh = nnx.split(side.build(nnx.Rngs(seed)), nnx.Param, ...)[1]
    attributions, path = explainer.attributions(inputs)
    at_random = np.random.default_rng(seed).random(batch["ids"].shape)
    changed, _ = explainer.attributions(explainer.inputs(batch, params=fresh, like=inputs))
    baseline = random_curves(
        explainer.probability, inputs, batch["ids"].shape, lengths=lengths, seed=seed
    )
    curves = {RANDOM: (baseline.deletion, baseline.insertion)}
    measured: dict[str, dict[str, np.ndarray]] = {}
    for method, values in {**attributions, RANDOM: at_random}.items():
        deletion, insertion = (
            curve(explainer.probability, inputs, values, lengths=lengths)
            for curve in (deletion_curve, insertion_curve)
        )
        curves.setdefault(method, (deletion, insertion))
        measured[method] = {
            "deletion": deletion.area,
            "deletion_random": baseline.deletion.area,
            "insertion": insertion.area,
            "insertion_random": baseline.insertion.area,
        }
        for name, other in (
            ("agreement_gradients", GRADIENTS),
            ("agreement_leave_one_out", LEFT_OUT),
        ):
            if method != other:
                measured[method][name] = spearman(values, attributions[other], lengths=lengths)
        if method in changed:
            measured[method]["random_weights"] = spearman(values, changed[method], lengths=lengths)
    predicted = jax.device_get(inputs["label"])
    for b, (index, example, tokens) in enumerate(rows):
        yield Explained(
            index,
            example.label,
            int(predicted[b]),
            tuple(tokens),
            {method: values[b, : lengths[b]] for method, values in attributions.items()},
            {method: (_row(pair[0], b), _row(pair[1], b)) for method, pair in curves.items()},
            {
                method: {name: float(values[b]) for name, values in found.items()}
                for method, found in measured.items()
            },
            float(path.gap[b]),
            float(path.change[b]),
        )


def _row(curve: Curve, b: int) -> Curve:
    return Curve(curve.shares, curve.scores[b : b + 1])


def summarise(explained: Sequence[Explained], *, seed: int) -> dict[str, Faithfulness]:
    """Returns how true each method is over all texts.

    Args:
        explained: at least one.
        seed: of the bootstrap.
    """
    summary = {}
    for method, names in explained[0].measured.items():
        columns: dict[str, Any] = {
            name: [one.measured[method][name] for one in explained] for name in names
        }
        summary[method] = Faithfulness.of(**columns, seed=seed)
    return summary


def missing_share(explained: Sequence[Explained]) -> float:
    """How much of the change of the log odds the integrated gradients miss or add, as a share."""
    gaps = sum(abs(one.gap) for one in explained)
    changes = sum(abs(one.change) for one in explained)
    return gaps / changes if changes else float("nan")


def as_json(
    explained: Sequence[Explained],
    summary: Mapping[str, Faithfulness],
    labels: Sequence[str],
    split: str,
) -> dict[str, Any]:
    """Returns the content of `focus_examples.json`.

    Args:
        explained: the texts to show.
        summary: from `summarise`.
        labels: names of the classes.
        split: the split that the texts come from.
    """
    return {
        "version": 1,
        "task": "text classification",
        "examples": [_example(one, labels, split) for one in explained],
        "faithful": {method: found.to_json() for method, found in summary.items()},
    }


def _example(one: Explained, labels: Sequence[str], split: str) -> dict[str, Any]:
    return {
        "title": f"{split} text {one.index}",
        "kind": "tokens",
        "tokens": list(one.tokens),
        "prediction": labels[one.predicted],
        "label": labels[one.label],
        "maps": [
            {
                "name": method,
                "module": MODULES.get(method),
                "head": None,
                "weights": [float(weight) for weight in weights],
            }
            for method, weights in one.attributions.items()
        ],
        "faithful": {
            method: {"deletion": _points(deletion), "insertion": _points(insertion)}
            for method, (deletion, insertion) in one.curves.items()
        },
    }


def _points(curve: Curve) -> list[list[float]]:
    pairs = zip(curve.shares, curve.scores[0], strict=True)
    return [[float(share), float(score)] for share, score in pairs]


def faithful_table(summary: Mapping[str, Faithfulness]) -> str:
    """The numbers as plain text."""
    lines = [
        f"{'method':<30} deletion  margin over random [95%]     insertion  "
        "gradients  left out  random weights"
    ]
    for method, found in summary.items():
        low, high = found.interval
        margin = f"{found.margin:+.3f} [{low:+.3f}, {high:+.3f}]"
        others = (
            (found.agreement_gradients, 9),
            (found.agreement_leave_one_out, 8),
            (found.random_weights, 14),
        )
        agreed = "  ".join(f"{_number(value):>{width}}" for value, width in others)
        lines.append(
            f"{method:<30} {found.deletion:>8.3f}  {margin:<29} {found.insertion:>9.3f}  {agreed}"
        )
    some = next(iter(summary.values()))
    return "\n".join(
        [
            *lines,
            f"{some.examples} texts; areas under curves of the predicted label's probability "
            f"(at random: deletion {some.deletion_random:.3f}, insertion "
            f"{some.insertion_random:.3f}); then mean rank correlations",
        ]
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"
