"""The one training loop: every task runs through `run`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from attnjax.focus.steady import remedies
from train.common.checkpoint import Checkpoints, Restored
from train.common.clock import Clock
from train.common.config import TrainConfig
from train.common.distributed import is_main
from train.common.dryrun import dry_run
from train.common.evaluation import EvaluationStopped, evaluate
from train.common.guard import check_finite
from train.common.head_log import HeadLog
from train.common.metrics import History, Means
from train.common.progress import Progress
from train.common.result import RunResult
from train.common.rundir import RunLock, claim, record_session
from train.common.selection import Selection
from train.common.signals import Interrupted, StopSignals, stop_signals
from train.common.step import make_predict, on_device, plan_steps
from train.common.task import Batch, Task

SKIPS = 20
"""Steps in a row that `--steady auto` may leave out because their numbers are not finite."""


def run(
    task: Task, config: TrainConfig, run_dir: Path, *, describe: Mapping[str, Any]
) -> RunResult | None:
    """Trains a task, or goes on where an earlier process with the same command stopped.

    The run directory gets config.json, manifest.json, metrics.jsonl, log.txt, tensorboard/ and
    checkpoints/. A process killed at any moment loses the steps since the last checkpoint, which
    the next one does again, to the same bits. SIGTERM and SIGINT save a checkpoint first.

    Several processes (`config.distributed`) must all call this with the same arguments and see the
    same run directory. Each loads its share of every batch; process 0 evaluates, writes all files
    but its share of the checkpoints', and speaks.

    Args:
        task: model, loss, metrics and data.
        config: how to train.
        run_dir: the directory of this run; made if it is not there.
        describe: the task's own settings as JSON-able values; a directory made with other ones is
            refused.

    Returns:
        The result; of an already finished run too. None after a dry run, which prints its findings
        to stdout and leaves no file.

    Raises:
        ValueError: config, data or directory do not fit, each named.
        Interrupted: a signal came; the state is saved.
        NonFiniteError: the numbers are no longer finite; names step and parameter.
        BrokenCheckpointError: there are checkpoints, but none can be read.
    """
    config.distributed.start()
    main = is_main()
    if config.dry_run:
        if main:
            print(dry_run(task, config))
        return None
    run_dir = Path(run_dir)
    if main:
        run_dir.mkdir(parents=True, exist_ok=True)
    with RunLock(run_dir) if main else nullcontext(), stop_signals() as stop:
        progress = Progress(run_dir / "log.txt" if main else None, show=config.progress)
        manifest = claim(
            run_dir, config, describe, data_fingerprint=task.data.fingerprint, say=progress.say
        )
        session = _Session(task, config, run_dir, progress, stop)
        # What other processes still owe to a checkpoint may never come after an error.
        settled = jax.process_count() == 1
        try:
            resumed = session.step or None
            record_session(run_dir, manifest, resumed_step=resumed, mesh=session.mesh)
            result = session.train()
            settled = True
            return result
        except Exception as error:
            progress.record(f"{type(error).__name__}: {error}")
            settled = settled or isinstance(error, Interrupted)
            raise
        finally:
            session.close(wait=settled)


class _Session:
    """One process's share of a run: what `run` keeps between steps."""

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        run_dir: Path,
        progress: Progress,
        stop: StopSignals,
    ) -> None:
        self._task, self._config, self._run_dir = task, config, run_dir
        self._progress, self._stop = progress, stop
        self.total = config.total_steps(task.data.train_size)
        start, self._steps = plan_steps(task, config)
        self._focus, self._steadied, self._skips = config.build_focus(), start.graphs.heads, 0
        self._layout = start.layout
        self._predict = make_predict(task, start.graphs, config, start.layout)
        self._checkpoints = Checkpoints(run_dir, keep=config.keep, say=progress.say)
        self._checkpoints.clean()
        self.step, self._evaluated = 0, True
        self._selection, self._means = Selection(), Means()
        if (restored := self._checkpoints.restore(start.like)) is not None:
            self._resume(restored)
        else:
            self._state = start.make()
        self._heads = HeadLog(
            run_dir, self._focus, resumed_step=self.step, say=progress.say, write=is_main()
        )
        self._history = History(
            run_dir,
            keep=self._belongs,
            tensorboard=config.tensorboard,
            resumed_step=self.step,
            write=is_main(),
        )
        self._rows = None if self._layout is None else self._layout.rows(config.batch_size)
        self._unread: tuple[int, dict[str, jax.Array], Batch] | None = None
        self._clock = Clock()

    def train(self) -> RunResult:
        """Does the steps that are left."""
        if self._finished and self._evaluated:
            self._progress.say(f"the run in {self._run_dir} is finished, at step {self.step}")
            return self._result()
        config = self._config
        self._progress.start(self.step, self.total)
        self._clock.restart()
        if not self._evaluated:
            self._milestone()
        batches = self._task.data.train_batches(
            batch_size=config.batch_size, seed=config.seed, start_step=self.step, rows=self._rows
        )
        while not self._finished:
            with self._clock.measure("data"):
                batch = self._next(batches)
            with self._clock.measure("compute"):
                batch_here = on_device(batch, self._layout, size=config.batch_size)
                self._state, metrics = self._next_step(self._state, batch_here)
            self.step += 1
            self._stop.poll()
            self._clock.step()
            self._read_metrics()  # of the step before, while this one runs
            self._unread = self.step, metrics, batch
            if self._due:
                self._read_metrics()
                self._evaluated = not self._evaluation_due
                self._milestone()
        self._checkpoints.wait()
        self._progress.say(f"finished at step {self.step} of {self.total}")
        return self._result()

    @property
    def mesh(self) -> Mapping[str, int] | None:
        """The size of each axis of the mesh; None without one."""
        return None if self._layout is None else self._layout.mesh.shape

    def close(self, *, wait: bool) -> None:
        """Ends what runs beside the loop; waits for the last checkpoint if told to."""
        try:
            self._checkpoints.close(wait=wait)
        finally:
            self._history.close()
            self._heads.close()
            self._progress.close()

    @property
    def _next_step(self) -> jax.stages.Wrapped:
        watched = self._steps.watched if self._focus.due(self.step + 1) else None
        return self._steps.plain if watched is None else watched

    def _resume(self, restored: Restored) -> None:
        """Goes on from a checkpoint."""
        self._state, self.step = restored.state, restored.step
        self._selection = Selection(**restored.host["selection"])
        self._means = Means(restored.host["means"])
        self._evaluated = restored.host["evaluated"]
        self._progress.say(f"resuming from the checkpoint of step {self.step} of {self.total}")

    def _belongs(self, row: dict[str, Any]) -> bool:
        """Whether a row of metrics.jsonl was written before the state at hand was reached."""
        if row["step"] == self.step:
            return row["kind"] != "eval" or self._evaluated
        return row["step"] < self.step

    @property
    def _finished(self) -> bool:
        return self.step >= self.total or self._selection.exhausted(self._config.patience)

    @property
    def _evaluation_due(self) -> bool:
        return self.step == self.total or self.step % self._config.eval_interval(self.total) == 0

    @property
    def _checkpoint_due(self) -> bool:
        return self.step % self._config.checkpoint_interval(self.total) == 0

    @property
    def _due(self) -> bool:
        return self._evaluation_due or self._checkpoint_due or self._stop.received is not None

    def _next(self, batches: Iterator[Batch]) -> Batch:
        """The next batch, of the size that was asked for."""
        try:
            batch = next(batches)
        except StopIteration as error:
            raise ValueError(
                f"train_batches must never end, but ended after step {self.step}"
            ) from error
        size = self._config.batch_size if self._rows is None else len(self._rows)
        for name, x in batch.items():
            if np.shape(x)[:1] != (size,):
                raise ValueError(
                    f"train_batches must give {size} examples, got {name} of shape {np.shape(x)}"
                )
        return batch

    def _read_metrics(self) -> None:
        """Fetches the unread step's metrics, checks them, and writes a row when one is due."""
        if self._unread is None:
            return
        (step, on_device_metrics, batch), self._unread = self._unread, None
        with self._clock.measure("compute"):
            metrics = jax.device_get(on_device_metrics)
        focus, actions = metrics.pop("focus", None), metrics.pop("steady", None)
        if focus is not None and self._focus.due(step):
            self._heads.write(step, focus, self._history)  # before the check: it may say why
        if actions is not None:
            self._heads.remedied(step, remedies(actions, self._steadied))
        self._skips = self._skips + 1 if actions is not None and actions.skip else 0
        if not 0 < self._skips <= SKIPS:
            check_finite(step, metrics, self._state["model"]["params"], batch)
            self._means.add({name: float(x) for name, x in metrics.items() if np.ndim(x) == 0})
        if step % self._config.log_every == 0 or step == self.total:
            means = self._means.take()
            self._history.write("train", step, means, self._clock.take())
            self._progress.step(step, means)

    def _milestone(self) -> None:
        """Evaluates and saves, as far as due; ends the process's work if a signal came."""
        improved = False
        if not self._evaluated:
            # Where it is given up, the checkpoint says so, and the next process evaluates first.
            with suppress(EvaluationStopped):
                improved = self._evaluate()
        stopping = self._stop.received  # read once: a signal after this waits for the next step
        if improved or stopping is not None or self._checkpoint_due or self._finished:
            self._history.sync()
            self._heads.sync()
            host = {
                "selection": self._selection.to_json(),
                "means": self._means.state,
                "evaluated": self._evaluated,
                "ema": self._config.ema_decay is not None,
            }
            self._checkpoints.save(self.step, self._state, host, best=self._selection.best_step)
        if stopping is not None and not (self._finished and self._evaluated):
            self._checkpoints.wait()
            raise Interrupted(
                stopping,
                f"stopped by signal {stopping} at step {self.step} of {self.total}; "
                "saved; the same command goes on from here",
            )

    def _evaluate(self) -> bool:
        """Evaluates, records it, and returns whether this is the best so far."""
        config, started = self._config, time.monotonic()
        with self._clock.pause():
            metrics = evaluate(
                self._task,
                self._predict,
                self._state["model"],
                config.eval_split,
                batch_size=config.eval_batch_size,
                layout=self._layout,
                stopped=self._stop.poll,
            )
        self._evaluated = True
        self._selection = self._selection.update(
            self.step, metrics, metric=config.select_metric, mode=config.select_mode
        )
        improved = self._selection.best_step == self.step
        self._history.write("eval", self.step, metrics, {"eval": time.monotonic() - started})
        self._progress.evaluation(self.step, metrics, best=improved)
        if self._finished and self.step < self.total:
            self._progress.say(
                f"stopping early: {self._selection.since_best} evaluations without a better "
                f"{config.select_metric} than at step {self._selection.best_step}"
            )
        return improved

    def _result(self) -> RunResult:
        return RunResult(
            task=self._task,
            config=self._config,
            run_dir=self._run_dir,
            last_step=self.step,
            total_steps=self.total,
            best_step=self._selection.best_step,
            best_metrics=self._selection.best_metrics,
            final_metrics=self._selection.last_metrics,
            history=self._history.path,
        )
