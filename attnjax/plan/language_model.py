"""Decoder-only Transformers of common sizes, and the step that trains one, as shapes only.

They are assembled from `attnjax.nn`: pre-norm layers with RMS norms, rotary positions and gated
feed-forward layers, in bfloat16 over float32 parameters, scanned over the layers. The embedding is
also the output matrix, and the logits are computed for a part of the positions at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from attnjax.masks import Causal
from attnjax.nn import AttentionOptions, Decoder, Rotary, TransformerConfig
from attnjax.plan.workload import BATCH, Change, Workload, attention_flops, partition
from attnjax.sharding.partition import Partition
from attnjax.sharding.rules import shardings

Remat = Literal["none", "dots", "full"]

Place = Callable[[Array, str], Array]
"""`place(x, axes)` constrains where an activation lies, by a letter for each of its axes: B, T, or
a dot for one that is not split."""

# Logits of so many positions of a sequence are held at a time.
_LOGITS = 2048


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of a model.

    Attributes:
      layers: number of layers.
      features: width of the sequence.
      heads: number of query heads.
      kv_heads: number of key heads.
      hidden: width inside the feed-forward layers.
      vocabulary: number of tokens.
    """

    layers: int
    features: int
    heads: int
    kv_heads: int
    hidden: int
    vocabulary: int = 32_000


# The usual proportions: heads 64 or 128 wide, gated layers 8/3 times as wide as the sequence.
MODELS = {
    "lm-tiny": Size(2, 256, 2, 2, 768, 1024),
    "lm-125m": Size(12, 768, 12, 12, 2048),
    "lm-1.3b": Size(24, 2048, 16, 16, 5632),
    "lm-7b": Size(32, 4096, 32, 32, 11008),
    "lm-70b": Size(80, 8192, 64, 8, 28672),
}


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
    method: str = "ring"

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
        levels = get_args(Remat)
        for remat in levels[levels.index(self.remat) + 1 :]:
            yield "remat", f"--remat {remat}", dataclasses.replace(self, remat=remat)
        parts = 2 * self.accumulate
        while parts <= 32 * self.accumulate:
            other = dataclasses.replace(self, accumulate=parts) if self.batch % parts == 0 else None
            if other is not None and other.takes(mesh):
                yield "accumulate", f"--accumulate {parts}", other
            parts *= 2
        if self.moments == "float32":
            other = dataclasses.replace(self, moments="bfloat16")
            yield "moments", "--moments bfloat16", other


class LanguageModel(nnx.Module):
    """A decoder between an embedding and its transpose.

    Args:
      training: what to build.
      spread: how attention is spread over a mesh.
      rngs: for the parameters.
    """

    def __init__(self, training: Training, *, spread: Partition, rngs: nnx.Rngs) -> None:
        size = training.size_of_model
        self.embedding = nnx.Embed(size.vocabulary, size.features, dtype=jnp.bfloat16, rngs=rngs)
        config = TransformerConfig(
            features=size.features,
            num_heads=size.heads,
            num_kv_heads=size.kv_heads,
            num_layers=size.layers,
            hidden=size.hidden,
            activation="swiglu",
            norm="rms",
            use_bias=False,
            scan_layers=True,
            remat=training.remat,
            dtype=jnp.bfloat16,
            attention=AttentionOptions(position=Rotary(), use_bias=False, partition=spread),
        )
        self.decoder = Decoder(config, rngs=rngs)

    def loss(
        self, tokens: Int[Array, "B T"], targets: Int[Array, "B T"], place: Place, shards: int
    ) -> Float[Array, ""]:
        """Returns the mean cross-entropy.

        Args:
          tokens: what is read.
          targets: what comes next.
          place: constrains where an activation lies, by a letter for each of its axes.
          shards: over how many devices a sequence is spread.
        """
        hidden: Any = self.decoder(place(self.embedding(tokens), "BT."))
        matrix = self.embedding.embedding[...].astype(jnp.bfloat16)
        B, T, _ = hidden.shape
        parts = max(1, T // shards // _LOGITS)

        def cut(x: Array) -> Array:
            """Cuts the positions of every device into parts, parts first."""
            x = x.reshape(B, shards, parts, T // shards // parts, *x.shape[2:])
            return jnp.moveaxis(x, 2, 0)

        @jax.checkpoint
        def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
            x, target = (place(a, "BT" + "." * (a.ndim - 2)) for a in part)
            logits = jnp.einsum("bstf,vf->bstv", x, matrix, preferred_element_type=jnp.float32)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
            return total + jnp.sum(losses), None

        total, _ = jax.lax.scan(add, jnp.float32(0), (cut(hidden), cut(targets)))
        return total / (B * T)


def placer(mesh: Mesh) -> Place:
    """Returns what constrains activations: B is split over data and fsdp, T over seq."""
    where: dict[str, Any] = {"B": BATCH, "T": "seq", ".": None}

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
    place, spread = placer(mesh), partition(mesh, training.method)
    model = nnx.eval_shape(lambda: LanguageModel(training, spread=spread, rngs=nnx.Rngs(0)))
    parts: tuple[Any, ...] = nnx.split(model, nnx.Param, ...)
    graph, params, rest = parts
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(3e-4, b2=0.95, weight_decay=0.1, mu_dtype=training.moments),
    )
    params = nnx.to_pure_dict(params)

    def step(params: Any, moments: Any, tokens: Array, targets: Array) -> Any:
        def loss(params: Any, tokens: Array, targets: Array) -> Array:
            return nnx.merge(graph, params, rest).loss(tokens, targets, place, shards)

        if training.accumulate == 1:
            value, grads = jax.value_and_grad(loss)(params, tokens, targets)
        else:

            def add(total: Any, part: Any) -> Any:
                return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(params, *part)), None

            parts = [
                place(jnp.moveaxis(x.reshape(-1, training.accumulate, x.shape[1]), 1, 0), ".BT")
                for x in (tokens, targets)
            ]
            zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
            (value, grads), _ = jax.lax.scan(add, zero, tuple(parts))
            value, grads = jax.tree.map(lambda x: x / training.accumulate, (value, grads))
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments, value

    def shaped(tree: Any) -> Any:
        return jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            tree,
            shardings(tree, mesh),
        )

    tokens = jax.ShapeDtypeStruct(
        (training.batch, training.sequence),
        jnp.int32,
        sharding=NamedSharding(mesh, PartitionSpec(BATCH, "seq")),
    )
    params, moments = shaped(params), shaped(jax.eval_shape(optimizer.init, params))
    count = sum(x.size for x in jax.tree.leaves(params))
    return Workload(
        title=f"a training step of {training.model} ({count:,} parameters)",
        function=jax.jit(step, donate_argnums=(0, 1)),
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
