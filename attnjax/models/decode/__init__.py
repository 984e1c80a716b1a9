"""Decoding: from prompts to tokens, with any function that returns logits step by step."""

from attnjax.models.decode.beams import Beams, beam_search
from attnjax.models.decode.generating import Generated, generate
from attnjax.models.decode.sampling import GREEDY, Sampling
from attnjax.models.decode.stepping import DecodeStep, decode_fn
from attnjax.models.decode.streaming import stream

__all__ = [
    "GREEDY",
    "Beams",
    "DecodeStep",
    "Generated",
    "Sampling",
    "beam_search",
    "decode_fn",
    "generate",
    "stream",
]
