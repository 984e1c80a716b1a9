"""`TrainConfig`: everything about a training run that is not the task itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import jax
import tyro
from jax.sharding import Mesh

from attnjax.focus import Watch
from attnjax.sharding.laying import parse_mesh
from attnjax.sharding.partition import Method
from train.common.distributed import DistributedConfig
from train.common.focusing import EVERY, FocusConfig, parse_focus
from train.common.mesh import build_mesh, check_batch
from train.common.optim import OptimConfig
from train.common.steadying import SteadyConfig, parse_steady

PLACEMENT_FIELDS = ("mesh", "sequence_method", "remat")
"""Fields that say where and when things are computed, which changes the last bits of them."""
NEUTRAL_FIELDS = (
    "keep",
    "progress",
    "tensorboard",
    "dry_run",
    "distributed",
    "focus",
    *PLACEMENT_FIELDS,
)
"""Fields that may differ when a run is resumed: they do not change what is computed."""

_COUNTS = (
    "steps",
    "batch_size",
    "eval_batch_size",
    "accumulate",
    "eval_every",
    "checkpoint_every",
    "keep",
    "patience",
    "log_every",
)


@dataclass(frozen=True)
class TrainConfig:
    """How long, how large, how often, and with which optimiser.

    Raises:
        ValueError: a field is out of its range, or two fields contradict each other.
    """

    steps: int | None = None
    """Optimiser steps in all. Give this or `epochs`, not both."""
    epochs: float | None = None
    """Passes over the training split, rounded up to whole steps."""
    batch_size: int = 64
    """Examples per optimiser step."""
    eval_batch_size: int = 256
    """Examples per evaluation batch; changes memory and speed only."""
    accumulate: int = 1
    """Splits each batch into this many parts, run one after another, to save memory."""
    seed: int = 0
    """Seeds the initial parameters, the dropout and the order of the data."""
    eval_split: str = "validation"
    """The split that is evaluated during training and that selects the best checkpoint."""
    eval_every: int | None = None
    """Steps between evaluations; None means ten evenly spaced ones. The last step always is one."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; None means at each evaluation. The last step always is one."""
    keep: int = 2
    """How many of the latest checkpoints stay; the best one stays besides."""
    select_metric: str = "accuracy"
    """The evaluation metric that says which checkpoint is best."""
    select_mode: Literal["max", "min"] = "max"
    """Whether more or less of `select_metric` is better."""
    patience: int | None = None
    """Stop after this many evaluations in a row without a better one; None means never."""
    ema_decay: float | None = None
    """Evaluate an exponential moving average of the parameters with this decay (0.999, say)."""
    matmul_precision: Literal["default", "high", "highest"] = "default"
    """Precision of float32 matrix products on accelerators (`jax.default_matmul_precision`)."""
    mesh: Annotated[str | None, tyro.conf.arg(name="mesh", prefix_name=False)] = None
    """Devices along each axis, such as data=2,fsdp=2,model=2,seq=2; -1 for those left over."""
    sequence_method: Method = "ring"
    """How attention works over a sequence that the mesh's axis seq splits."""
    focus: Annotated[str | None, tyro.conf.arg(name="focus", prefix_name=False)] = None
    """Record where each head looks, such as every=50 for the first and every 50th step."""
    steady: Annotated[str | None, tyro.conf.arg(name="steady", prefix_name=False)] = None
    """Keep attention steady: auto, or such as qk_clip=100,z_loss=1e-4,entropy_floor=0.1."""
    remat: Literal["none", "dots", "full"] = "none"
    """Recompute in backward passes, layer by layer: all but matrix products, or everything."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser, its schedule, weight decay and clipping."""
    log_every: int = 20
    """Steps between lines in metrics.jsonl."""
    tensorboard: bool = True
    """Also write TensorBoard event files."""
    progress: bool = True
    """Show progress on stderr: a bar in a terminal, plain lines elsewhere."""
    dry_run: bool = False
    """Print shapes, parameter count and memory of the real step, then stop without training."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """Which processes train together."""

    def __post_init__(self) -> None:
        """Rejects values that cannot mean anything, before any time is spent."""
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"give exactly one of steps and epochs and None for the other, got steps="
                f"{self.steps} and epochs={self.epochs}"
            )
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.epochs is not None and not (self.epochs > 0 and math.isfinite(self.epochs)):
            raise ValueError(f"epochs must be a positive number, got {self.epochs}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size must be a multiple of accumulate, got {self.batch_size} and "
                f"{self.accumulate}"
            )
        if self.select_mode not in ("max", "min"):
            raise ValueError(f"select_mode must be max or min, got {self.select_mode!r}")
        if self.mesh is not None:
            parse_mesh(self.mesh)
        self.build_focus()
        self.build_steady()
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie between 0 and 1, got {self.ema_decay}")

    def build_mesh(self) -> Mesh | None:
        """Makes the mesh over all devices; None where one device does everything.

        Several processes without a mesh of their own share the batches: data=-1.

        Raises:
            ValueError: the sizes do not fit the devices or the batches.
        """
        text = "data=-1" if self.mesh is None and jax.process_count() > 1 else self.mesh
        if text is None:
            return None
        mesh = build_mesh(text)
        check_batch(
            mesh.shape,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            eval_batch_size=self.eval_batch_size,
        )
        return mesh

    def build_focus(self) -> FocusConfig:
        """When it is recorded where heads look; what `auto` does has to be seen."""
        if self.focus is not None:
            return parse_focus(self.focus)
        return FocusConfig(EVERY if self.build_steady().auto else None)

    def build_steady(self) -> SteadyConfig:
        """What is done to keep attention steady."""
        return SteadyConfig() if self.steady is None else parse_steady(self.steady)

    @property
    def watch(self) -> Watch | None:
        """How the model is watched; None for not at all."""
        steady = self.build_steady()
        if self.build_focus().every is None and not steady.wanted:
            return None
        return Watch(differentiable=steady.penalises)

    def total_steps(self, train_size: int) -> int:
        """Optimiser steps of the whole run, for a training split of `train_size` examples."""
        if self.steps is not None:
            return self.steps
        if train_size < 1:
            raise ValueError(f"the training split must hold examples, its size is {train_size}")
        assert self.epochs is not None  # __post_init__ saw to it
        return max(1, math.ceil(self.epochs * train_size / self.batch_size))

    def eval_interval(self, total_steps: int) -> int:
        """Steps between evaluations in a run of `total_steps`."""
        return self.eval_every or max(1, math.ceil(total_steps / 10))

    def checkpoint_interval(self, total_steps: int) -> int:
        """Steps between checkpoints in a run of `total_steps`."""
        return self.checkpoint_every or self.eval_interval(total_steps)
