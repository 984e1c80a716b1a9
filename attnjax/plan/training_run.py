"""A train entrypoint with its options, as something to plan."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from attnjax.plan.workload import Change, Workload, lighter


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """A run of an entrypoint.

    Attributes:
      entrypoint: the module.
      options: its command line.
      task: what it trains, a `train.common.task.Task`.
      config: how, a `train.common.config.TrainConfig`.
    """

    entrypoint: str
    options: tuple[str, ...]
    task: Any = dataclasses.field(repr=False)
    config: Any = dataclasses.field(repr=False)

    @classmethod
    def parse(cls, entrypoint: str, options: Sequence[str]) -> TrainingRun:
        """Reads a command line as the entrypoint itself would.

        Raises:
          ValueError: if there is no such entrypoint, or it cannot be planned.
        """
        try:
            module = importlib.import_module(entrypoint)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"entrypoint: expected a module such as train.text_classification, and what it "
                f"needs installed; {entrypoint!r}: {error}"
            ) from error
        if not hasattr(module, "prepare"):
            raise ValueError(
                f"entrypoint: {entrypoint} has no function prepare(argv), which gives the planner "
                "its task and its training config."
            )
        task, config = module.prepare(list(options))
        return cls(entrypoint, tuple(options), task, config)

    @property
    def mesh(self) -> str | None:
        """The mesh that its options ask for."""
        mesh: str | None = self.config.mesh
        return mesh

    def make(self, mesh: Mesh) -> Workload:
        """Returns the training step on a mesh."""
        if not self.takes(mesh.shape):
            raise ValueError(
                f"mesh: expected data * fsdp * accumulate={self.config.accumulate} to divide the "
                f"batch of {self.config.batch_size}; got {dict(mesh.shape)}."
            )
        # The library does not need the training extra; entrypoints do.
        step = importlib.import_module("train.common.step")
        config = self.config
        start, run = step.plan_step(self.task, config, mesh)
        batches = self.task.data.train_batches(
            batch_size=config.batch_size, seed=config.seed, start_step=0
        )
        batch = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=start.layout.batch)
            for name, x in step.on_device(next(iter(batches))).items()
        }
        model, kept = start.like["model"], start.like["optimizer"]
        count = sum(x.size for x in jax.tree.leaves(model["params"]))
        return Workload(
            title=f"a training step of {self.entrypoint} ({count:,} parameters)",
            function=run,
            arguments={"state": start.like, "inputs: batch": batch},
            mesh=mesh,
            settings={
                "batch": config.batch_size,
                "accumulate": config.accumulate,
                "remat": config.remat,
                "options": " ".join(self.options) or "none",
            },
            parts={
                "parameters": model["params"],
                "averaged parameters": model["ema"],
                "optimizer": kept,
                "other state": (model["rest"], model["rng"]),
                "inputs": batch,
            },
        )

    def takes(self, mesh: Mapping[str, int]) -> bool:
        """Whether its batch divides by a mesh."""
        return self.config.batch_size % (mesh["data"] * mesh["fsdp"] * self.config.accumulate) == 0

    def size(self, axis: str) -> int:
        """Returns the batch; the length of its sequences is the data's own.

        Raises:
          ValueError: if asked for the length.
        """
        if axis != "batch":
            raise ValueError("largest: expected batch, for the data decide how long sequences are.")
        size: int = self.config.batch_size
        return size

    def granule(self, axis: str, mesh: Mapping[str, int]) -> int:
        """Returns the steps in which the batch can grow on a mesh."""
        rows: int = mesh["data"] * mesh["fsdp"] * self.config.accumulate
        return rows

    def resized(self, axis: str, size: int) -> TrainingRun:
        """Returns the same run with another batch."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, batch_size=size))

    def option(self, axis: str) -> str:
        """Returns the option that asks for its batch."""
        return f"--train.batch-size {self.config.batch_size}"

    def changes(self, mesh: Mapping[str, int]) -> Iterator[Change]:
        """Yields what needs less memory for the same batch: remat and accumulation."""
        config = self.config
        for name, value in lighter(config.batch_size, config.remat, config.accumulate):
            other = dataclasses.replace(self, config=dataclasses.replace(config, **{name: value}))
            if other.takes(mesh):
                yield name, f"--train.{name} {value}", other
