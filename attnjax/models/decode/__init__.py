"""Decoding: from prompts to tokens, with any function that returns logits step by step."""

from attnjax.models.decode.generating import Generated, generate
from attnjax.models.decode.sampling import GREEDY, Sampling
from attnjax.models.decode.stepping import DecodeStep, decode_fn

__all__ = [
    "GREEDY",
    "DecodeStep",
    "Generated",
    "Sampling",
    "decode_fn",
    "generate",
]
