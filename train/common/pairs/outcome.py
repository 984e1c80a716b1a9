"""The end of a run that writes texts: test scores beside a baseline's, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.common.files import write_json
from train.common.metrics import read_history
from train.common.pairs.run import Writer, Written
from train.common.pairs.scores import Scorer, SeqBaseline, scores_line
from train.common.pairs.text_pairs import TextPairs
from train.common.result import RunResult

REPORT, RESULT = "report.html", "result.json"


@dataclass(frozen=True)
class SeqOutcome:
    """How a finished run did."""

    run_dir: Path
    test: Mapping[str, float]
    baseline: SeqBaseline
    primary: str

    def describe(self) -> str:
        """A few lines for people."""
        difference = self.test[self.primary] - self.baseline.test[self.primary]
        return (
            f"test     {scores_line(self.test)}\n"
            f"baseline {scores_line(self.baseline.test)}  ({difference:+.2f} "
            f"{self.primary} for the model)\nreport: {self.run_dir / REPORT}"
        )


def finish_seq(
    result: RunResult,
    writer: Writer,
    data: TextPairs,
    baseline: SeqBaseline,
    scorer: Scorer,
    *,
    title: str,
    notes: Sequence[str] = (),
) -> SeqOutcome:
    """Measures the best checkpoint on the test split; writes result.json and report.html.

    Args:
        result: of the run.
        writer: with the model of the best checkpoint.
        data: the pairs.
        baseline: what to beat.
        scorer: compares outputs with references.
        title: of the report, the task's name.
        notes: what else to say about the data.
    """
    # Imported late: only the end of a run needs matplotlib.
    from train.common.pairs.report import SeqReport, write_seq_report

    written = writer.write(data.sources("test"))
    test = scorer([one.text for one in written], data.targets("test"))
    notes = (*data.notes, *notes, *search_notes(written))
    run_dir = result.run_dir
    write_json(
        run_dir / RESULT,
        {
            "test": test,
            "baseline_test": dict(baseline.test),
            "baseline": baseline.description,
            "signatures": dict(scorer.signatures()),
            "validation": dict(result.best_metrics or {}),
            "best_step": result.best_step,
            "last_step": result.last_step,
            "notes": list(notes),
        },
    )
    shown = chosen(data, written)
    write_seq_report(
        run_dir / REPORT,
        SeqReport(
            title=title,
            data=data,
            test=test,
            baseline=baseline,
            primary=scorer.primary,
            signatures=scorer.signatures(),
            history=read_history(result.history),
            best_step=result.best_step,
            shown=[(data.splits["test"][i], written[i], baseline.outputs[i]) for i in shown],
            alignments=list(writer.alignments([written[i] for i in shown[:3]])),
            notes=notes,
            run_dir=run_dir,
        ),
    )
    return SeqOutcome(run_dir, test, baseline, scorer.primary)


def search_notes(written: Sequence[Written]) -> tuple[str, ...]:
    """What went wrong while outputs were searched for, counted."""
    cut = sum(one.source_cut for one in written)
    endless = sum(not one.ended for one in written)
    return tuple(
        f"{count} of {len(written)} {what}"
        for count, what in (
            (cut, "sources were longer than the model reads, and cut"),
            (endless, "outputs did not end by themselves, and were cut at the limit"),
        )
        if count
    )


def chosen(data: TextPairs, written: Sequence[Written], *, count: int = 12) -> list[int]:
    """Test pairs to show, spread evenly over the lengths, those that fit into a picture first."""
    order = np.argsort([len(one.source) for one in written], kind="stable")
    places = np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).astype(int))
    spread = [int(order[place]) for place in places]
    # A picture of a long text is unreadable, one of a word says nothing.
    return sorted(spread, key=lambda i: not 20 <= len(data.splits["test"][i].source) <= 120)


def seeds_table(outcomes: Mapping[int, SeqOutcome]) -> str:
    """Test scores by seed, their mean and spread (sample standard deviation), the baseline."""
    first = next(iter(outcomes.values()))
    names = list(first.test)

    def line(label: str, values: Sequence[float]) -> str:
        return f"{label:>4}   " + "   ".join(f"{value:>9.2f}" for value in values)

    lines = ["seed   " + "   ".join(f"{name:>9}" for name in names)]
    lines += [line(str(s), [o.test[name] for name in names]) for s, o in outcomes.items()]
    columns = np.array([[o.test[name] for name in names] for o in outcomes.values()])
    lines.append(line("mean", columns.mean(axis=0)))
    if len(columns) > 1:
        lines.append(line("sd", columns.std(axis=0, ddof=1)))
    lines.append(line("base", [first.baseline.test[name] for name in names]))
    return "\n".join(lines)
