"""What a finished run that chooses answers amounts to: numbers beside the baseline's, a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train.common.dialogue.baseline import DialogueBaseline
from train.common.dialogue.dialogues import DialogueData, Utterance, all_turns, utterances
from train.common.dialogue.run import Choice, Chooser
from train.common.files import write_json
from train.common.metrics import read_history
from train.common.result import RunResult

RESULT, REPORT = "result.json", "report.html"
FAINT = 0.02
"""Utterances that no head gave more weight are not shown on the report page."""


@dataclass(frozen=True)
class DialogueOutcome:
    """The results of one run, by split."""

    report: Path
    scores: dict[str, dict[str, float]]
    baseline: DialogueBaseline

    def describe(self) -> str:
        """A few lines for people."""
        return f"{scores_table(self.scores, self.baseline)}\nreport: {self.report}"


class Shown(NamedTuple):
    """A turn on the report page."""

    choice: Choice
    wanted: str

    @property
    def right(self) -> bool:
        """Whether the answer is right."""
        return self.choice.answer == self.wanted

    @property
    def rows(self) -> list[tuple[Utterance, tuple[float, ...]]]:
        """What the model looked at, with the weight in each head."""
        pairs = zip(self.choice.context, zip(*self.choice.weights, strict=True), strict=True)
        return [(utterance, weights) for utterance, weights in pairs if max(weights) >= FAINT]

    @property
    def faint(self) -> int:
        """How many utterances are left out."""
        return len(self.choice.context) - len(self.rows)


def finish(
    result: RunResult, chooser: Chooser, data: DialogueData, baseline: DialogueBaseline, hops: int
) -> DialogueOutcome:
    """Measures the best checkpoint on all held-out splits; writes result.json and report.html.

    Args:
        result: of the run.
        chooser: its best model.
        data: the dialogues.
        baseline: how the baseline did on them.
        hops: number of the first heads that are hops, for the page.
    """
    # Imported late: only the end of a run needs matplotlib.
    from train.common.page import curves, run_description, write_page

    scores = {split: chooser.scores(data.splits[split]) for split in data.held_out}
    write_json(
        result.run_dir / RESULT,
        {
            **scores,
            "baseline": baseline.name,
            **{f"baseline_{split}": found for split, found in baseline.scores.items()},
            "best_step": result.best_step,
            "last_step": result.last_step,
        },
    )
    report = result.run_dir / REPORT
    shown = chosen(data, chooser)
    write_page(
        report,
        "dialogue_report.html.j2",
        data=data,
        scores=scores,
        baseline=baseline,
        answers={split: sum(map(len, data.splits[split])) for split in data.splits},
        best_step=result.best_step,
        curves=curves(
            read_history(result.history),
            ("loss", "accuracy"),
            best_step=result.best_step,
            lines={"accuracy": {"baseline": baseline.scores["validation"]["accuracy"]}},
        ),
        shown=shown,
        hops=hops,
        pointers=len(shown[0].choice.weights) - hops,
        fingerprint=data.fingerprint,
        **run_description(result.run_dir),
    )
    return DialogueOutcome(report, scores, baseline)


def chosen(data: DialogueData, chooser: Chooser, *, right: int = 12, wrong: int = 4) -> list[Shown]:
    """Picks test turns to show: right answers that begin differently, then the surest mistakes.

    Only the first dialogues are looked through, for this is a page and no measurement.
    """
    dialogues = data.splits["test"][:200]
    contexts = []
    for dialogue in dialogues:
        said, places = utterances(dialogue)
        contexts += [said[: place + 1] for place in places]
    wanted = [turn.bot for turn in all_turns(dialogues)]
    turns = [Shown(*pair) for pair in zip(chooser.choose(contexts), wanted, strict=True)]
    kinds: dict[str, Shown] = {}
    for turn in turns:
        if turn.right:
            kinds.setdefault(" ".join(turn.wanted.split()[:2]), turn)
    misses = sorted((t for t in turns if not t.right), key=lambda t: -t.choice.probability)
    return (list(kinds.values())[:right] + misses[:wrong]) or turns[:right]


def scores_table(
    scores: Mapping[str, Mapping[str, float]], baseline: DialogueBaseline | None = None
) -> str:
    """Accuracies by split as plain text, the baseline's beside."""
    lines = ["split        answers   dialogues" + ("   baseline: answers" if baseline else "")]
    for split, found in scores.items():
        line = (
            f"{split:<10}  {_percent(found['accuracy'])}   {_percent(found['dialogue_accuracy'])}"
        )
        if baseline:
            line += f"             {_percent(baseline.scores[split]['accuracy'])}"
        lines.append(line)
    return "\n".join(lines)


def seeds_table(outcomes: Mapping[int, DialogueOutcome]) -> str:
    """Right answers by seed and split, their mean and spread (sample standard deviation)."""
    first = next(iter(outcomes.values()))
    splits = list(first.scores)
    columns = [[o.scores[split]["accuracy"] for split in splits] for o in outcomes.values()]

    def row(name: object, values: Sequence[float]) -> str:
        return f"{name!s:>4}" + "".join(f"{_percent(x):>13}" for x in values)

    lines = ["seed" + "".join(f"{split:>13}" for split in splits)]
    lines += [row(seed, values) for seed, values in zip(outcomes, columns, strict=True)]
    lines.append(row("mean", np.mean(columns, axis=0).tolist()))
    if len(columns) > 1:
        lines.append(row("sd", np.std(columns, axis=0, ddof=1).tolist()))
    lines.append(row("base", [first.baseline.scores[split]["accuracy"] for split in splits]))
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:7.2f}%"
