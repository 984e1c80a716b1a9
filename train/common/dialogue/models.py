"""A model that chooses an answer: it asks the dialogue so far, and scores candidates by words."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax.models.memory_network import MemoryNetworkConfig, read_memory
from attnjax.sharding.rules import TRANSFORMER
from train.common.dialogue.batches import SPEAKERS
from train.common.tokenise import PAD_ID, UNKNOWN_ID

RULES = TRANSFORMER.extended(
    paths=(
        (r"^network\.(words|age|kind)$", (None, "words", "embed")),
        (r"^network\.mapping$|^pointer\.kernel$", ("embed", None)),
        (r"^(gate|bias|strength|pointer\.bias)$", (None,)),
    ),
    axes=(("words", None),),
)
"""Where the parameters of an `AnswerSelector` belong on a mesh. Vocabularies come from the data, in
any number, so nothing but fsdp splits what belongs to them."""


@dataclass(frozen=True)
class SelectorConfig:
    """Sizes of a memory network that chooses answers, and what keeps it from learning by heart.

    Raises:
        ValueError: a size or a rate is out of range.
    """

    features: int = 64
    """Width of the embeddings."""
    hops: int = 3
    """How many times the dialogue so far is asked."""
    heads: int = 1
    """Attention heads of each hop."""
    pointers: int = 4
    """Attention heads that point at words of the dialogue: an answer with such a word scores more,
    whether training has shown the word or not. 0 for none."""
    mapping: bool = False
    """Whether a learned matrix takes the state from each hop to the next."""
    ages: int = 32
    """Distinct ages of utterances; older ones share the last."""
    hidden_words: float = 0.2
    """Share of the vocabulary that looks unknown in a training example, differently in each, so
    that the model learns to point; equal words can still be seen to be equal."""

    def __post_init__(self) -> None:
        """Rejects what no model can be built from."""
        for name in ("features", "hops", "heads", "ages"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.features % self.heads:
            raise ValueError(f"features {self.features} must be a multiple of heads {self.heads}")
        if self.pointers < 0:
            raise ValueError(f"pointers must not be negative, got {self.pointers}")
        if not 0 <= self.hidden_words < 1:
            raise ValueError(f"hidden_words must lie in [0, 1), got {self.hidden_words}")

    def build(self, *, size: int, known: int, rngs: nnx.Rngs) -> AnswerSelector:
        """Builds the model.

        Args:
            size: number of word ids.
            known: number of those, the first ones, that have an embedding of their own.
            rngs: streams `params` and `dropout`.
        """
        return AnswerSelector(self, size, known, rngs=rngs)


class AnswerSelector(nnx.Module):
    """Scores candidates as answers to a dialogue.

    A memory network over all utterances and rows so far gives a state. A candidate's score is the
    sum of its words' scores, and a word's score is the state's product with its embedding, plus
    what points at it: heads that attend from the state to the utterances give each word in them
    their weight, times the head's strength and the word's gate. So an answer with a name that
    training never showed can still be chosen.

    Source: the memory network for dialogues is that of Bordes et al., "Learning End-to-End
    Goal-Oriented Dialog" (2017). Pointing takes the place of their match types; it does among
    candidates what copying does word by word in Madotto et al., "Mem2Seq" (2018).

    Args:
        config: sizes and rates.
        size: number of word ids V.
        known: number of those, the first ones, that have an embedding of their own.
        rngs: streams `params` and `dropout`.
    """

    def __init__(self, config: SelectorConfig, size: int, known: int, *, rngs: nnx.Rngs):
        self.size, self.known, self.pointers = size, known, config.pointers
        self.network = MemoryNetworkConfig(
            vocabulary=known,
            features=config.features,
            num_heads=config.heads,
            hops=config.hops,
            mapping=config.mapping,
            ages=config.ages,
            kinds=len(SPEAKERS),
        ).build(rngs=rngs)
        self.hidden_words = nnx.Dropout(config.hidden_words, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros((known,)))
        if config.pointers:
            self.pointer = nnx.Linear(config.features, config.pointers * config.features, rngs=rngs)
            self.strength = nnx.Param(jnp.ones((config.pointers,)))
            self.gate = nnx.Param(jnp.zeros((known,)))

    def __call__(
        self,
        history: Int[Array, "B M W"],
        query: Int[Array, "B W"],
        *,
        age: Int[Array, "B M"],
        speaker: Int[Array, "B M"],
        candidates: Int[Array, "C U"],
    ) -> tuple[Float[Array, "B C"], Float[Array, "B A M"]]:
        """Scores the candidates.

        Args:
            history: word ids of all utterances, the one to answer among them; padded by 0.
            query: word ids of the utterance to answer.
            age: utterances since.
            speaker: who said it.
            candidates: word ids of the answers to choose from.

        Returns:
            The scores, and the attention weights of all heads of all hops, then of the pointers.
        """
        rows = self._rows(len(history))
        seen = jnp.take_along_axis(rows, history.reshape(len(history), -1), axis=1)
        seen = seen.reshape(history.shape)
        asked = jnp.take_along_axis(rows, query, axis=1)
        state, hops = self.network(seen, asked, ages=age, kinds=speaker, return_weights=True)
        weights = [hops.reshape(len(history), -1, history.shape[1])]
        scores = self.network.logits(state) + self.bias[...]
        scores = jnp.take_along_axis(scores, rows, axis=1)
        if self.pointers:
            ages = jnp.minimum(age, self.network.config.ages - 1)
            last = self.network.config.hops
            memory = self.network.remember(seen, last, ages=ages, kinds=speaker)
            there = jnp.any(history != PAD_ID, axis=-1)
            _, points = read_memory(
                self.pointer(state),
                memory,
                memory,
                there,
                heads=self.pointers,
                partition=self.network.partition,
            )
            weights.append(points)
            pointed = jnp.einsum("bpm,p->bm", points, self.strength[...])
            gate = jax.nn.sigmoid(self.gate[...])[rows]
            scores = scores + gate * _spread(pointed, history, self.size)
        scores = scores.at[:, PAD_ID].set(0.0)
        # Rows of the turned table are contiguous, which makes gathering them several times faster.
        return jnp.sum(scores.T[candidates], axis=1).T, jnp.concatenate(weights, axis=1)

    def _rows(self, examples: int) -> Int[Array, "B V"]:
        """Where each word's embedding is found, in training for some of them that of unknowns."""
        ids = jnp.arange(self.size)
        own = jnp.where(ids < self.known, ids, UNKNOWN_ID)
        shown = self.hidden_words(jnp.ones((examples, self.size))) > 0
        return jnp.where(shown | (ids == PAD_ID), own, UNKNOWN_ID)


def _spread(
    weights: Float[Array, "B M"], history: Int[Array, "B M W"], size: int
) -> Float[Array, "B V"]:
    """Gives every word the summed weights of the utterances it stands in."""
    examples = jnp.arange(len(history))[:, None, None]
    each = jnp.broadcast_to(weights[..., None], history.shape)
    return jnp.zeros((len(history), size)).at[examples, history].add(each)
