"""Decoder-only Transformers of common sizes.

Pre-norm layers with RMS norms, rotary positions and gated feed-forward layers, in bfloat16 over
float32 parameters, scanned over the layers; the embedding is also the output matrix.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp

from attnjax.models import LanguageModelConfig
from attnjax.nn import AttentionOptions, Rotary, TransformerConfig
from attnjax.sharding.partition import Partition

Remat = Literal["none", "dots", "full"]


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


def config_of(size: Size, *, remat: Remat, spread: Partition) -> LanguageModelConfig:
    """Returns the config of a model.

    Args:
      size: its sizes.
      remat: what the backward pass keeps of each layer.
      spread: how attention is spread over a mesh.
    """
    decoder = TransformerConfig(
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
    return LanguageModelConfig(size.vocabulary, decoder)
