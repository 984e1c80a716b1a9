"""What a run leaves behind: metrics, and models from its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optax
from flax import nnx

from train.common.checkpoint import Checkpoints
from train.common.config import TrainConfig
from train.common.evaluation import evaluate
from train.common.seal import BrokenCheckpointError, read_seal
from train.common.selection import Selection
from train.common.state import Graphs, plan_state, split_model
from train.common.step import make_predict
from train.common.task import Task

Which = Literal["best", "last"]


@dataclass(frozen=True)
class RunResult:
    """The end of a run, and the way to its parameters.

    `best` means the checkpoint of `best_step`, `last` the one of `last_step`.
    """

    task: Task
    config: TrainConfig
    run_dir: Path
    last_step: int
    """Updates done."""
    total_steps: int
    """Updates planned; more than `last_step` where the run stopped early."""
    best_step: int | None
    """Step of the best evaluation; None if none gave a number."""
    best_metrics: Mapping[str, float] | None
    """All metrics of the best evaluation."""
    final_metrics: Mapping[str, float] | None
    """All metrics of the last evaluation."""
    history: Path
    """metrics.jsonl; `train.common.metrics.read_history` reads it."""

    @property
    def stopped_early(self) -> bool:
        """Whether the run ran out of patience before its last step."""
        return self.last_step < self.total_steps

    def params(self, which: Which = "best") -> dict[str, Any]:
        """Parameters as nested dicts of arrays; the averaged ones if the run keeps an average.

        Raises:
            BrokenCheckpointError: the checkpoint is gone or damaged.
            ValueError: there is no best step.
        """
        _, state = self._load(which)
        return state["ema"] or state["params"]

    def model(self, which: Which = "best") -> nnx.Module:
        """The model in eval mode. Raises as `params` does."""
        graphs, state = self._load(which)
        return graphs.merge_eval(state)

    def evaluate(self, split: str, which: Which = "best") -> dict[str, float]:
        """The task's metrics on any split, on the config's mesh. Raises as `params` does.

        Several processes must all call it.
        """
        start = plan_state(self.task, optax.identity(), self.config)
        state = _load_parts(self.run_dir, self._step(which), start.like["model"])
        predict = make_predict(self.task, start.graphs, self.config, start.layout)
        return evaluate(
            self.task,
            predict,
            state,
            split,
            batch_size=self.config.eval_batch_size,
            layout=start.layout,
        )

    def _step(self, which: Which) -> int | None:
        return self.best_step if which == "best" else self.last_step

    def _load(self, which: Which) -> tuple[Graphs, dict[str, Any]]:
        build, seed = self.task.build_model, self.config.seed
        return _load_model_state(build, self.run_dir, self._step(which), seed)


def load_model(
    build_model: Callable[[nnx.Rngs], nnx.Module], run_dir: Path, *, which: Which = "best"
) -> nnx.Module:
    """The model of a run directory, finished or not, in eval mode; needs no data.

    Args:
        build_model: makes the model the run trained, as `Task.build_model` does.
        run_dir: the run directory; nothing in it is changed.
        which: the best checkpoint, as the newest whole one knows it, or the newest whole one.

    Raises:
        BrokenCheckpointError: there is no whole checkpoint, or the best one is damaged.
        ValueError: no evaluation has given a best step yet.
    """
    checkpoints = _reader(run_dir)
    reasons = []
    for step in reversed(checkpoints.steps):
        try:
            host = read_seal(checkpoints.path(step))["host"]
        except BrokenCheckpointError as error:
            reasons.append(f"step {step}: {error}")
            continue
        wanted = Selection(**host["selection"]).best_step if which == "best" else step
        graphs, state = _load_model_state(build_model, run_dir, wanted, 0)
        return graphs.merge_eval(state)
    why = "; ".join(reasons) or "there are none"
    raise BrokenCheckpointError(f"no checkpoint of {run_dir} can be read: {why}")


def _load_model_state(
    build_model: Callable[[nnx.Rngs], nnx.Module], run_dir: Path, step: int | None, seed: int
) -> tuple[Graphs, dict[str, Any]]:
    """The `model` part of one checkpoint, verified, whole on one device."""
    graphs, like = split_model(build_model(nnx.Rngs(seed)))
    return graphs, _load_parts(run_dir, step, like)


def _load_parts(run_dir: Path, step: int | None, like: dict[str, Any]) -> dict[str, Any]:
    """The `model` part of one checkpoint, verified, where `like` says."""
    if step is None:
        raise ValueError(f"{run_dir} has no best checkpoint: no evaluation gave a number")
    checkpoints = _reader(run_dir)
    try:
        ema = like["params"] if read_seal(checkpoints.path(step))["host"]["ema"] else {}
        return checkpoints.load(step, {"model": {**like, "ema": ema}}).state["model"]
    except BrokenCheckpointError as error:
        raise BrokenCheckpointError(
            f"the checkpoint of step {step} in {run_dir} is broken: {error}"
        ) from error


def _reader(run_dir: Path) -> Checkpoints:
    """The checkpoints of a run directory, for reading only."""
    return Checkpoints(run_dir, keep=1, say=lambda message: None)
