"""Readers of stories that show which sentences they looked at, in each of several steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import tyro
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from attnjax import Prefix
from attnjax.models.memory_network import MemoryNetworkConfig
from attnjax.nn import TransformerBlock, TransformerConfig
from attnjax.sharding.rules import TRANSFORMER
from train.common.tokenise import PAD_ID

RULES = TRANSFORMER.extended(
    paths=(
        (r"^network\.(words|age)$", (None, "words", "embed")),
        (r"^network\.mapping$", ("embed", None)),
        (r"^(words|places|age|steps)$", ("words", "embed")),
        (r"^asked$", (None,)),
        (r"^output\.kernel$", ("embed", "classes")),
        (r"^output\.bias$", (None,)),
    ),
    axes=(("words", None), ("classes", None)),
)
"""Where the parameters of a story reader belong on a mesh. Vocabularies and answers come from the
data, in any number, so nothing but fsdp splits what belongs to them."""


@dataclass(frozen=True)
class StoryModelConfig:
    """Which reader, its sizes and what keeps it from learning the training set by heart.

    Raises:
        ValueError: a size or a rate is out of range.
    """

    name: Annotated[
        Literal["recurrent", "transformer", "memory"],
        tyro.conf.arg(name="model", prefix_name=False),
    ] = "recurrent"
    """recurrent: one Transformer layer over sentences and question, applied several times, as in a
    Universal Transformer; transformer: as many layers of its own; memory: an end-to-end memory
    network."""
    features: int = 64
    """Width of the embeddings and of everything after them."""
    heads: int = 4
    """Attention heads; the memory network has one."""
    steps: int = 4
    """How many times the question looks at the story: layers, or hops of the memory network."""
    hidden: int = 128
    """Width inside the feed-forward layers."""
    age_noise: float = 0.1
    """Chance that a sentence counts as two older in training, so that ages not seen are known."""
    dropout: float = 0.1
    """Dropout on what each sublayer adds and before the last layer; memory: on that one only."""

    def __post_init__(self) -> None:
        """Rejects what no model can be built from."""
        for name in ("features", "heads", "steps", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.name != "memory" and self.features % self.heads:
            raise ValueError(f"features {self.features} must be a multiple of heads {self.heads}")
        for name in ("age_noise", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")

    def build(
        self, *, vocabulary: int, words: int, answers: int, max_sentences: int, rngs: nnx.Rngs
    ) -> StoryReader | MemoryReader:
        """Builds the model.

        Args:
            vocabulary: number of word ids.
            words: most words of a sentence.
            answers: number of classes.
            max_sentences: most sentences of a story.
            rngs: streams `params` and `dropout`.
        """
        # Noise makes sentences older than any story is long.
        ages = 2 * max_sentences
        if self.name == "memory":
            return MemoryReader(self, vocabulary, answers, ages, rngs=rngs)
        return StoryReader(self, vocabulary, words, answers, ages, rngs=rngs)


class StoryReader(nnx.Module):
    """Attends among the sentences of a story and a question, and answers from the question.

    A sentence is the sum of its words, each weighed feature by feature by a learned vector of its
    place in the sentence, and of a learned vector of its age: how many sentences came after it.

    Sources: Dehghani et al., "Universal Transformers" (2019), for a layer that is applied again and
    again, told which step it is; Henaff et al., "Tracking the World State with Recurrent Entity
    Networks" (2017), section 2.1, for the learned weights of places.

    Args:
        config: sizes and rates.
        vocabulary: number of word ids.
        words: most words W of a sentence.
        answers: number of classes C.
        ages: how many ages have a vector of their own; older sentences share the last.
        rngs: streams `params` and `dropout`.
    """

    def __init__(
        self,
        config: StoryModelConfig,
        vocabulary: int,
        words: int,
        answers: int,
        ages: int,
        *,
        rngs: nnx.Rngs,
    ):
        features, repeats = config.features, config.name == "recurrent"

        def table(rows: int, size: float) -> nnx.Param[Array]:
            return nnx.Param(size * jax.random.normal(rngs.params(), (rows, features)))

        self.words = table(vocabulary, features**-0.5)
        self.places = nnx.Param(1 + 0.1 * jax.random.normal(rngs.params(), (words, features)))
        self.age, self.steps = table(ages, 0.1), table(config.steps, 0.1)
        self.asked = nnx.Param(0.1 * jax.random.normal(rngs.params(), (features,)))
        # Embeddings start small for Adam's sake; half a unit leaves room for the sum of words.
        self.scale = 0.5 * features**0.5
        layer = TransformerConfig(
            features=features,
            num_heads=config.heads,
            num_layers=1,
            hidden=config.hidden,
            activation="relu",
            dropout_rate=config.dropout,
        )
        count = 1 if repeats else config.steps
        self.layers = nnx.List([TransformerBlock(layer, rngs=rngs) for _ in range(count)])
        self.gaps = nnx.Dropout(config.age_noise, rngs=rngs)
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)
        self.output = nnx.Linear(features, answers, rngs=rngs)

    def __call__(
        self,
        story: Int[Array, "B S W"],
        question: Int[Array, "B W"],
        *,
        return_weights: bool = False,
    ) -> tuple[Float[Array, "B C"], Float[Array, "B L S"] | None]:
        """Answers questions.

        Args:
            story: word ids, padded at the end by 0 in both directions.
            question: word ids, padded likewise.
            return_weights: also compute how much each step looked at each sentence.

        Returns:
            The logits; and, if asked for, for each step the question's attention weight on each
            sentence, the mean over heads. What is missing to 1 was on the question itself.
        """
        length = jnp.sum(jnp.any(story != PAD_ID, axis=-1), axis=-1)
        x, weights = self.embed(story, question), []
        for step in range(len(self.steps[...])):
            layer = self.layers[step % len(self.layers)]
            x = x + self.steps[...][step]
            if return_weights:
                weights.append(_looks(layer, x, length))
            x = layer(x, mask=Prefix(length + 1))
        logits = self.output(self.dropout(self.norm(x[:, 0])))
        return logits, jnp.stack(weights, axis=1) if return_weights else None

    def embed(
        self, story: Int[Array, "B S W"], question: Int[Array, "B W"]
    ) -> Float[Array, "B S+1 F"]:
        """What the layers read: the question, then the sentences."""
        ages = sentence_ages(jnp.any(story != PAD_ID, axis=-1), self.gaps)
        sentences = self._bag(story) + self.age[...][jnp.minimum(ages, self.age.shape[0] - 1)]
        asked = self._bag(question) + self.asked[...]
        return jnp.concatenate([asked[:, None], sentences], axis=1)

    def _bag(self, words: Int[Array, "... W"]) -> Float[Array, "... F"]:
        embedded = self.scale * self.words[...][words] * self.places[...]
        return jnp.sum(jnp.where((words != PAD_ID)[..., None], embedded, 0), axis=-2)


class MemoryReader(nnx.Module):
    """An end-to-end memory network whose last state is classified.

    Args:
        config: sizes and rates.
        vocabulary: number of word ids.
        answers: number of classes C.
        ages: how many ages have a vector of their own; older sentences share the last.
        rngs: streams `params` and `dropout`.
    """

    def __init__(
        self,
        config: StoryModelConfig,
        vocabulary: int,
        answers: int,
        ages: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.network = MemoryNetworkConfig(
            vocabulary,
            config.features,
            hops=config.steps,
            tying="layerwise",
            mapping=True,
            word_order=True,
            ages=ages,
        ).build(rngs=rngs)
        self.gaps = nnx.Dropout(config.age_noise, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)
        self.output = nnx.Linear(config.features, answers, rngs=rngs)

    def __call__(
        self,
        story: Int[Array, "B S W"],
        question: Int[Array, "B W"],
        *,
        return_weights: bool = False,
    ) -> tuple[Float[Array, "B C"], Float[Array, "B L S"] | None]:
        """Answers questions; arguments and results are `StoryReader`'s, the weights sum to 1."""
        ages = sentence_ages(jnp.any(story != PAD_ID, axis=-1), self.gaps)
        state, weights = self.network(story, question, ages=ages, return_weights=True)
        logits = self.output(self.dropout(state))
        return logits, weights[:, :, 0] if return_weights else None


def sentence_ages(there: Bool[Array, "B S"], gaps: nnx.Dropout) -> Int[Array, "B S"]:
    """How many sentences came after each one.

    Args:
        there: which places hold a sentence, the oldest first.
        gaps: in training, what it drops is a place where one sentence more seems to have come, as
            an empty memory does in Sukhbaatar et al., "End-To-End Memory Networks" (2015), 4.1.
    """
    counted = there + (there & (gaps(jnp.ones(there.shape)) == 0)).astype(jnp.int32)
    after = jnp.cumsum(counted[:, ::-1], axis=1)[:, ::-1]
    return jnp.maximum(after - 1, 0)


def _looks(
    layer: TransformerBlock, x: Float[Array, "B T F"], length: Int[Array, "B"]
) -> Float[Array, "B S"]:
    """How much the question, at place 0, attends to the sentences after it in a layer."""
    x = layer.attention_norm(x)
    q, k = layer.attention.query(x[:, :1]), layer.attention.key(x)
    scores = jnp.einsum("btnh,bsnh->bns", q, k) * q.shape[-1] ** -0.5
    places = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 2)
    inside = places <= length[:, None, None]
    weights = jax.nn.softmax(jnp.where(inside, scores, -jnp.inf), axis=-1)
    return jnp.mean(weights, axis=1)[:, 1:]
