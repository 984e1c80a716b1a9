"""Decoder-only Transformers of common sizes.

They are assembled from `attnjax.nn`: pre-norm layers with RMS norms, rotary positions and gated
feed-forward layers, in bfloat16 over float32 parameters, scanned over the layers. The embedding is
also the output matrix, and the logits are computed for a part of the positions at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax.nn import AttentionOptions, Decoder, Rotary, TransformerConfig
from attnjax.sharding.partition import Partition

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


class LanguageModel(nnx.Module):
    """A decoder between an embedding and its transpose.

    Args:
      size: its sizes.
      remat: what the backward pass keeps of each layer.
      spread: how attention is spread over a mesh.
      rngs: for the parameters.
    """

    def __init__(self, size: Size, *, remat: Remat, spread: Partition, rngs: nnx.Rngs) -> None:
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
            remat=remat,
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
