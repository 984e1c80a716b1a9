"""Models assembled from `attnjax.nn`: decoder-only, encoder-decoder, encoder, memory."""

from attnjax.models.language import LanguageModel, LanguageModelConfig
from attnjax.models.losses import cross_entropy, next_token_loss, token_losses
from attnjax.models.memory_network import MemoryNetwork, MemoryNetworkConfig
from attnjax.models.pointer import Pointer
from attnjax.models.recurrent_seq2seq import (
    RecurrentCache,
    RecurrentSeq2Seq,
    RecurrentSeq2SeqConfig,
)
from attnjax.models.seq2seq import Seq2Seq, Seq2SeqCache, Seq2SeqConfig
from attnjax.models.span import SpanModel, SpanModelConfig
from attnjax.models.text_encoder import (
    MaskedLanguageModel,
    MaskedLanguageModelConfig,
    TextEncoder,
    TextEncoderConfig,
)

__all__ = [
    "LanguageModel",
    "LanguageModelConfig",
    "MaskedLanguageModel",
    "MaskedLanguageModelConfig",
    "MemoryNetwork",
    "MemoryNetworkConfig",
    "Pointer",
    "RecurrentCache",
    "RecurrentSeq2Seq",
    "RecurrentSeq2SeqConfig",
    "Seq2Seq",
    "Seq2SeqCache",
    "Seq2SeqConfig",
    "SpanModel",
    "SpanModelConfig",
    "TextEncoder",
    "TextEncoderConfig",
    "cross_entropy",
    "next_token_loss",
    "token_losses",
]
