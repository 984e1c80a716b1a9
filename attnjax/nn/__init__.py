"""Flax NNX modules: parameters, projections, and one call of an operation."""

from attnjax.nn.activated import ActivatedAttention
from attnjax.nn.additive import AdditiveAttention
from attnjax.nn.attention import MultiHeadAttention
from attnjax.nn.blocks import TransformerBlock
from attnjax.nn.cache import KeyValues, KVCache
from attnjax.nn.config import TransformerConfig
from attnjax.nn.decoder import Decoder, DecoderCache, EncoderDecoder
from attnjax.nn.encoder import Encoder
from attnjax.nn.experts import ExpertOptions, MixtureOfExperts
from attnjax.nn.feedforward import FeedForward
from attnjax.nn.frequencies import llama3_rotary, yarn_rotary
from attnjax.nn.interop import attention_fn
from attnjax.nn.norms import OffsetRMSNorm
from attnjax.nn.options import AttentionOptions
from attnjax.nn.pooling import AttentionPooling
from attnjax.nn.positions import (
    Alibi,
    LearnedPositions,
    Positions,
    RelativeBias,
    Rotary,
    SinusoidalPositions,
    sinusoids,
)
from attnjax.nn.shift import shift_mask, shift_score_mod
from attnjax.nn.sigma import SigmaLinear, SigmaLinearGeneral, SigmaVector
from attnjax.nn.spreading import spread

__all__ = [
    "ActivatedAttention",
    "AdditiveAttention",
    "Alibi",
    "AttentionOptions",
    "AttentionPooling",
    "Decoder",
    "DecoderCache",
    "Encoder",
    "EncoderDecoder",
    "ExpertOptions",
    "FeedForward",
    "KVCache",
    "KeyValues",
    "LearnedPositions",
    "MixtureOfExperts",
    "MultiHeadAttention",
    "OffsetRMSNorm",
    "Positions",
    "RelativeBias",
    "Rotary",
    "SigmaLinear",
    "SigmaLinearGeneral",
    "SigmaVector",
    "SinusoidalPositions",
    "TransformerBlock",
    "TransformerConfig",
    "attention_fn",
    "llama3_rotary",
    "shift_mask",
    "shift_score_mod",
    "sinusoids",
    "spread",
    "yarn_rotary",
]
