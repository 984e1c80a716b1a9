"""What a finished language-modelling run amounts to: numbers beside the baseline's, a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from attnjax.models.decode import Sampling
from train.common.files import write_json
from train.common.lm.documents import Documents
from train.common.lm.ngrams import NgramBaseline
from train.common.lm.run import Language, Scored
from train.common.metrics import read_history
from train.common.result import RunResult

RESULT, REPORT = "result.json", "report.html"
_SAMPLES, _SAMPLE_TOKENS, _SHOWN, _SHOWN_CHARACTERS = 3, 300, 3, 1200
_DARKEST = 4.0
"""Bits per byte of a word that is shaded darkest."""


@dataclass(frozen=True)
class Outcome:
    """The result of one run."""

    run_dir: Path
    split: str
    """The split that was measured."""
    metrics: Mapping[str, float]
    """As `text_metrics` has them."""
    baseline: NgramBaseline

    def describe(self) -> str:
        """A few lines for people."""
        difference = self.metrics["bits_per_byte"] - self.baseline.measured
        return (
            f"{self.split}: {self.metrics['bits_per_byte']:.4f} bits per byte, "
            f"{self.metrics['nats_per_character']:.4f} nats per character, perplexity "
            f"{self.metrics['perplexity']:.2f} per token\n"
            f"n-grams: {self.baseline.measured:.4f} bits per byte ({difference:+.4f} for the "
            f"model; less is better)\nreport: {self.run_dir / REPORT}"
        )


def finish(
    result: RunResult,
    metrics: Mapping[str, float],
    language: Language,
    data: Documents,
    baseline: NgramBaseline,
) -> Outcome:
    """Writes result.json and report.html of a run whose best checkpoint was measured."""
    write_json(
        result.run_dir / RESULT,
        {
            data.measured: dict(metrics),
            "baseline": asdict(baseline),
            "validation": dict(result.best_metrics or {}),
            "best_step": result.best_step,
            "last_step": result.last_step,
        },
    )
    outcome = Outcome(result.run_dir, data.measured, metrics, baseline)
    write_report(outcome, result, language, data)
    return outcome


def write_report(outcome: Outcome, result: RunResult, language: Language, data: Documents) -> None:
    """Writes the report: curves, samples, and how surprising held-out documents were."""
    # Imported late: only the end of a run needs matplotlib.
    from train.common.page import curves, run_description, write_page

    sampling = Sampling(temperature=0.8)
    samples = [
        "".join(language.sample("", max_tokens=_SAMPLE_TOKENS, sampling=sampling, seed=seed))
        for seed in range(_SAMPLES)
    ]
    shown = language.score(excerpts(data.splits[data.measured]))
    write_page(
        result.run_dir / REPORT,
        "lm_report.html.j2",
        outcome=outcome,
        data=data,
        sizes={split: (len(d), sum(map(len, d))) for split, d in data.splits.items()},
        best_step=result.best_step,
        curves=curves(
            read_history(result.history),
            ("loss", "bits_per_byte"),
            best_step=result.best_step,
            lines={"bits_per_byte": {"n-grams on validation": outcome.baseline.validation}},
        ),
        samples=samples,
        shown=[(scored, shades(scored)) for scored in shown],
        fingerprint=data.fingerprint,
        **run_description(result.run_dir),
    )


def excerpts(documents: Sequence[str]) -> list[str]:
    """The beginnings of a few documents, spread over all of them, long ones first choice."""
    long = [document for document in documents if len(document) >= 200] or list(documents)
    places = np.linspace(0, len(long) - 1, min(_SHOWN, len(long))).astype(int)
    return [long[place][:_SHOWN_CHARACTERS] for place in places]


def shades(scored: Scored) -> list[tuple[str, float, float]]:
    """The words as `(word, bits, shade)`; the shade, in [0, 1], grows with the bits per byte."""
    return [
        (word, bits, min(1.0, bits / len(word.encode()) / _DARKEST)) for word, bits in scored.words
    ]


def seeds_table(outcomes: Mapping[int, Outcome]) -> str:
    """Results by seed, their mean and spread (sample standard deviation), the baseline."""
    names = ("bits_per_byte", "nats_per_character", "perplexity")
    first = next(iter(outcomes.values()))
    lines = [f"seed   {'   '.join(name.replace('_', ' ') for name in names)}   ({first.split})"]

    def line(label: object, values: Sequence[float]) -> str:
        cells = (f"{v:>{len(name)}.4f}" for name, v in zip(names, values, strict=False))
        return f"{label!s:>4}   {'   '.join(cells)}"

    table = np.array([[o.metrics[name] for name in names] for o in outcomes.values()])
    lines += [line(seed, row) for seed, row in zip(outcomes, table, strict=True)]
    lines.append(line("mean", table.mean(axis=0)))
    if len(table) > 1:
        lines.append(line("sd", table.std(axis=0, ddof=1)))
    base = first.baseline
    lines.append(line("base", [base.measured, base.nats_per_character]) + "   (byte n-grams)")
    return "\n".join(lines)
