"""Models assembled from `attnjax.nn`: decoder-only, encoder-decoder."""

from attnjax.models.language import LanguageModel, LanguageModelConfig
from attnjax.models.seq2seq import Seq2Seq, Seq2SeqCache, Seq2SeqConfig

__all__ = [
    "LanguageModel",
    "LanguageModelConfig",
    "Seq2Seq",
    "Seq2SeqCache",
    "Seq2SeqConfig",
]
