"""A training step of a language model, as something to plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from attnjax.masks import Causal
from attnjax.models import next_token_loss
from attnjax.plan.language_model import MODELS, Remat, Size, config_of
from attnjax.plan.workload import Change, Workload, attention_flops, lighter
from attnjax.sharding.laying import BATCH_AXES, partition_on
from attnjax.sharding.partition import Method
from attnjax.sharding.rules import shardings

Place = Callable[[Array, str], Array]
"""`place(x, axes)` constrains where an activation lies, by a letter for each of its axes: B, T, or
a dot for one that is not split."""


@dataclasses.dataclass(frozen=True)
class Training:
    """How a model is trained.

    Attributes:
      model: one of `MODELS`.
      batch: sequences in one update.
      sequence: tokens in a sequence.
      remat: what the backward pass keeps of each layer, as in `attnjax.nn.TransformerConfig`.
      accumulate: parts of a batch that are run one after the other.
      moments: dtype of Adam's first moment.
      method: how attention is sharded over the sequence, as in `attnjax.Partition`.
    """

    model: str
    batch: int
    sequence: int
    remat: Remat = "full"
    accumulate: int = 1
    moments: Literal["float32", "bfloat16"] = "float32"
    method: Method = "ring"

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"model: expected one of {', '.join(MODELS)}; got {self.model!r}.")
        for name in ("batch", "sequence", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}.")
        if self.batch % self.accumulate:
            raise ValueError(
                f"batch: expected a multiple of accumulate={self.accumulate}, got {self.batch}."
            )

    @property
    def size_of_model(self) -> Size:
        """Sizes of the model."""
        return MODELS[self.model]

    def make(self, mesh: Mesh) -> Workload:
        """Returns the step that trains the model on a mesh; see `make`."""
        return make(self, mesh)

    def takes(self, mesh: Mapping[str, int]) -> bool:
        """Whether the batch, its parts, the sequence and the heads divide by a mesh."""
        rows = mesh["data"] * mesh["fsdp"] * self.accumulate
        heads = self.size_of_model.heads
        return not (self.batch % rows or self.sequence % mesh["seq"] or heads % mesh["model"])

    def size(self, axis: str) -> int:
        """Returns the batch or the length of its sequences."""
        return self.batch if axis == "batch" else self.sequence

    def granule(self, axis: str, mesh: Mapping[str, int]) -> int:
        """Returns the steps in which that size can grow on a mesh."""
        rows = mesh["data"] * mesh["fsdp"] * self.accumulate
        return rows if axis == "batch" else 256 * mesh["seq"]

    def resized(self, axis: str, size: int) -> Training:
        """Returns the same with another batch or sequence."""
        if axis == "batch":
            return dataclasses.replace(self, batch=size)
        return dataclasses.replace(self, sequence=size)

    def option(self, axis: str) -> str:
        """Returns the option that asks for its batch or sequence."""
        return f"--{axis} {self.size(axis)}"

    def changes(self, mesh: Mapping[str, int]) -> Iterator[Change]:
        """Yields what needs less memory for the same batch: remat, accumulation, moments."""
        for name, value in lighter(self.batch, self.remat, self.accumulate):
            changed: dict[str, Any] = {name: value}
            other = dataclasses.replace(self, **changed)
            if other.takes(mesh):
                yield name, f"--{name} {value}", other
        if self.moments == "float32":
            other = dataclasses.replace(self, moments="bfloat16")
            yield "moments", "--moments bfloat16", other


def placer(mesh: Mesh) -> Place:
    """Returns what constrains activations: B is split over data and fsdp, T over seq."""
    where: dict[str, Any] = {"B": BATCH_AXES, "T": "seq", ".": None}

    def place(x: Array, axes: str) -> Array:
        spec = PartitionSpec(*(where[a] for a in axes))
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return place


def make(training: Training, mesh: Mesh) -> Workload:
    """Returns the step that trains a model on a mesh: nothing is allocated.

    Args:
      training: the model and how it is trained.
      mesh: with the axes data, fsdp, model and seq.

    Raises:
      ValueError: if sizes do not divide.
    """
    sizes = dict(mesh.shape)
    rows, shards = sizes["data"] * sizes["fsdp"], sizes["seq"]
    if training.batch // training.accumulate % rows:
        raise ValueError(
            f"batch: expected parts of a multiple of data * fsdp = {rows} sequences, got "
            f"{training.batch} / accumulate={training.accumulate}."
        )
    if training.sequence % shards:
        raise ValueError(f"sequence: expected a multiple of seq={shards}, got {training.sequence}.")
    place, spread = placer(mesh), partition_on(sizes, training.method)
    config = config_of(training.size_of_model, remat=training.remat, spread=spread)
    model = nnx.eval_shape(lambda: config.build(rngs=nnx.Rngs(0)))
    parts: tuple[Any, ...] = nnx.split(model, nnx.Param, ...)
    graph, params, rest = parts
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(3e-4, b2=0.95, weight_decay=0.1, mu_dtype=training.moments),
    )
    params = nnx.to_pure_dict(params)
    moments = jax.eval_shape(optimizer.init, params)
    where, beside = shardings(params, mesh), shardings(moments, mesh)

    def step(params: Any, moments: Any, tokens: Array, targets: Array) -> Any:
        def gradients(tokens: Array, targets: Array) -> Any:
            def loss(params: Any) -> Array:
                return next_token_loss(nnx.merge(graph, params, rest), tokens, targets)

            value, grads = jax.value_and_grad(loss)(params)
            # Else devices might sum up, and keep, all of the gradients.
            return value, jax.lax.with_sharding_constraint(grads, where)

        if training.accumulate == 1:
            value, grads = gradients(tokens, targets)
        else:
            zeros = jax.lax.with_sharding_constraint(jax.tree.map(jnp.zeros_like, params), where)
            total = (jnp.float32(0), zeros)
            value, grads = _accumulated(
                gradients, total, training.accumulate, place, tokens, targets
            )
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments, value

    tokens = jax.ShapeDtypeStruct(
        (training.batch, training.sequence),
        jnp.int32,
        sharding=NamedSharding(mesh, PartitionSpec(BATCH_AXES, "seq")),
    )
    params, moments = _placed(params, where), _placed(moments, beside)
    count = sum(x.size for x in jax.tree.leaves(params))
    return Workload(
        title=f"a training step of {training.model} ({count:,} parameters)",
        function=jax.jit(
            step,
            donate_argnums=(0, 1),
            out_shardings=(where, beside, NamedSharding(mesh, PartitionSpec())),
        ),
        arguments={
            "parameters": params,
            "optimizer": moments,
            "inputs: tokens": tokens,
            "inputs: targets": tokens,
        },
        mesh=mesh,
        settings=dataclasses.asdict(training),
        attention=lambda: _attention(training),
    )


def _placed(tree: Any, where: Any) -> Any:
    """Returns shapes that know where they lie."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, where
    )


def _accumulated(
    gradients: Callable[..., Any], total: Any, parts: int, place: Place, *batch: Array
) -> Any:
    """Returns the mean loss and the mean gradients of the parts of a batch."""

    def add(total: Any, part: tuple[Array, ...]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradients(*part)), None

    cut = [place(jnp.moveaxis(x.reshape(-1, parts, x.shape[1]), 1, 0), ".BT") for x in batch]
    total, _ = jax.lax.scan(add, total, tuple(cut))
    return jax.tree.map(lambda x: x / parts, total)


def _attention(training: Training) -> int:
    """Counts the operations of the attention of all layers, parts of a batch and recomputations."""
    size, batch = training.size_of_model, training.batch // training.accumulate
    q, k = (
        jax.ShapeDtypeStruct(
            (batch, training.sequence, heads, size.features // size.heads), jnp.bfloat16
        )
        for heads in (size.heads, size.kv_heads)
    )
    passes = size.layers * training.accumulate
    again = 0 if training.remat == "none" else passes
    return attention_flops(q, k, Causal(), forward=again, backward=passes)
