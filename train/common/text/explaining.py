"""Explanations of a text classifier's decisions: which tokens speak for the predicted label."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from attnjax.focus.faithful import (
    IntegratedGradients,
    integrated_gradients,
    leave_one_out,
    pooling_attention,
    received_attention,
)
from attnjax.models.recurrent import Bidirectional
from train.common.task import Batch
from train.common.text.models import TextClassifier
from train.common.tokenise import UNKNOWN_ID

RAW = "attention pooling"
WEIGHTED = "gradient x attention pooling"
SELF = "self-attention received"
SELF_WEIGHTED = "gradient x self-attention"
GRADIENTS = "integrated gradients"
LEFT_OUT = "leave one out"

MODULES = {RAW: "pooling", WEIGHTED: "pooling", SELF: "reader", SELF_WEIGHTED: "reader"}
"""The part of the model that a method looks at; the others look at the whole."""


class TextExplainer:
    """Scores and attributions of one model, compiled once per width of a batch.

    What is explained is the label that the model itself gives to the whole text. Removing a token
    means showing an unknown word without spelling in its place, as word dropout does in training.

    Args:
        model: in eval mode.
    """

    def __init__(self, model: TextClassifier) -> None:
        split: Any = nnx.split(model, nnx.Param, ...)
        graph, self.params, rest = split
        self._merge: Callable[[Any], TextClassifier] = lambda params: nnx.merge(graph, params, rest)
        self._predict = jax.jit(lambda params, batch: self._merge(params)(**batch)[0])
        self._attention = jax.jit(self._attend)
        self._transformer = not isinstance(model.reader, Bidirectional)

    def inputs(self, batch: Batch, params: Any = None, like: Any = None) -> dict[str, Any]:
        """What the scores take.

        Args:
            batch: `ids`, `length` and, where sub-words are on, `subwords`.
            params: other parameters than the model's.
            like: other inputs whose labels are to be explained, instead of the predicted ones.
        """
        params = self.params if params is None else params
        label = jnp.argmax(self._predict(params, batch), axis=-1) if like is None else like["label"]
        return {"params": params, "batch": batch, "label": label}

    def probability(self, inputs: Any, keep: Bool[Array, "B T"]) -> Float[Array, "B"]:
        """The probability of the label if only some tokens remain."""
        logits = self._remaining(inputs, keep)
        shares = jax.nn.softmax(logits)
        return jnp.take_along_axis(shares, inputs["label"][:, None], axis=1)[:, 0]

    def log_odds(self, inputs: Any, keep: Bool[Array, "B T"]) -> Float[Array, "B"]:
        """The log odds of the label if only some tokens remain; unlike probability never at 1."""
        return log_odds(self._remaining(inputs, keep), inputs["label"])

    def embedded_log_odds(self, inputs: Any, x: Float[Array, "B T F"]) -> Float[Array, "B"]:
        """The log odds of the label given embedded tokens."""
        logits, _ = self._merge(inputs["params"]).from_embedded(x, inputs["batch"]["length"])
        return log_odds(logits, inputs["label"])

    def attributions(
        self, inputs: dict[str, Any]
    ) -> tuple[dict[str, Float[np.ndarray, "B T"]], IntegratedGradients]:
        """What each token adds to the log odds of the label, by method; larger is more.

        Raw attention has no sign: it can say how much, not for what.

        Returns:
            The attributions, and the integrated gradients again, which say how far they are from
            adding up.
        """
        length, shape = inputs["batch"]["length"], inputs["batch"]["ids"].shape
        path = self.integrated(inputs)
        found = {
            **self._attention(inputs),
            GRADIENTS: path.attributions,
            LEFT_OUT: leave_one_out(self.log_odds, inputs, shape, lengths=length),
        }
        return {name: np.asarray(values) for name, values in found.items()}, path

    def integrated(self, inputs: dict[str, Any], *, steps: int = 16) -> IntegratedGradients:
        """Integrated gradients of the log odds, on the way from a text of unknown words."""
        shape = inputs["batch"]["ids"].shape
        whole, nothing = (self._embedded(inputs, some(shape, bool)) for some in (np.ones, np.zeros))
        return integrated_gradients(
            self.embedded_log_odds,
            inputs,
            whole,
            nothing,
            lengths=inputs["batch"]["length"],
            steps=steps,
        )

    def _attend(self, inputs: Any) -> dict[str, Array]:
        batch, label = inputs["batch"], inputs["label"]
        length, model = batch["length"], self._merge(inputs["params"])
        x = model.embed(batch["ids"], length, batch.get("subwords"))
        states = model.read(x, length)

        def score(pooled: Array) -> Array:
            return log_odds(model.classify(pooled, states, length), label)

        pooled = pooling_attention(model.pooling, states, score, lengths=length)
        found = {RAW: pooled.raw, WEIGHTED: pooled.gradient_weighted}
        if self._transformer:

            def whole(model: TextClassifier) -> Array:
                return log_odds(model.from_embedded(x, length)[0], label)

            layers = received_attention(model, whole, lengths=length).values()
            found[SELF] = _sum([layer.raw for layer in layers])
            found[SELF_WEIGHTED] = _sum([layer.gradient_weighted for layer in layers])
        return found

    @partial(jax.jit, static_argnums=0)
    def _embedded(self, inputs: Any, keep: Bool[Array, "B T"]) -> Float[Array, "B T F"]:
        ids, length, subwords = _removed(inputs["batch"], keep)
        return self._merge(inputs["params"]).embed(ids, length, subwords)

    def _remaining(self, inputs: Any, keep: Bool[Array, "B T"]) -> Float[Array, "B C"]:
        return self._merge(inputs["params"])(*_removed(inputs["batch"], keep))[0]


def log_odds(logits: Float[Array, "B C"], label: Array) -> Float[Array, "B"]:
    """The log of the probability of a label over that of all others together."""
    logits = logits.astype(jnp.float32)
    own = jax.nn.one_hot(label, logits.shape[-1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=-1)
    return jnp.sum(jnp.where(own, logits, 0), axis=-1) - others


def _sum(received: list[Array]) -> Float[Array, "B T"]:
    """Sums over modules and heads."""
    return jnp.sum(jnp.concatenate(received, axis=2), axis=2)


def _removed(batch: Any, keep: Bool[Array, "B T"]) -> tuple[Array, Array, Array | None]:
    """Ids, length and sub-words with unknown words in the place of what does not remain."""
    subwords = batch.get("subwords")
    ids = jnp.where(keep, batch["ids"], UNKNOWN_ID)
    if subwords is not None:
        subwords = jnp.where(keep[..., None], subwords, 0)
    return ids, batch["length"], subwords
