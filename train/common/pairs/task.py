"""The task of writing a text for a text: loss, greedy outputs and metrics for the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax.models import cross_entropy
from attnjax.models.decode import generate
from train.common.pairs.batches import PairBatches
from train.common.pairs.models import RULES, SeqModelConfig
from train.common.pairs.tokenise import BEGIN_ID, END_ID, PAD_ID
from train.common.pairs.tokens import PairTokens
from train.common.task import Batch, Task

Metric = Callable[[Sequence[str], Sequence[str]], Mapping[str, float]]
"""`(outputs, references) -> scores by name`, over a whole split."""

_READ = ("source", "target_in", "target_out", "source_length")


def seq_task(
    model: SeqModelConfig,
    tokens: PairTokens,
    batches: PairBatches,
    *,
    smoothing: float,
    metric: Metric | None,
) -> Task:
    """Puts data, model, loss and metrics together.

    The loss is the mean over the examples of the summed cross-entropy of their tokens, divided by
    the mean length of a training target: nats per token over the whole training split, whatever
    lengths a batch has and into how many parts it is split.

    Args:
        model: the model.
        tokens: tokenisers and limits.
        batches: the data.
        smoothing: share of each target that is spread over the whole vocabulary.
        metric: compares greedy outputs with the references at each evaluation; None leaves it at
            `loss`, nats per token, and `token_accuracy`, which need no decoding.

    Raises:
        ValueError: label smoothing was asked of a model that copies.
    """
    if model.copy and smoothing:
        raise ValueError(
            "label smoothing and copying do not go together: a share of the target on the whole "
            f"vocabulary would teach not to copy; expected label_smoothing 0, got {smoothing}"
        )

    def loss(net: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        if model.copy:
            surprise = -net.target_logprobs(*(batch[name] for name in _READ))
        else:
            surprise = cross_entropy(_logits(net, batch), batch["target_out"], smoothing=smoothing)
        return jnp.mean(_summed(surprise, batch)) / batches.mean_target, {}

    def predict(net: Any, batch: Batch) -> dict[str, Any]:
        logits = _logits(net, batch)
        right = jnp.take_along_axis(logits, batch["target_out"][..., None], axis=-1)[..., 0]
        predicted = {
            "nll": _summed(cross_entropy(logits, batch["target_out"]), batch),
            "hits": _summed(right >= jnp.max(logits, axis=-1), batch),
        }
        if metric is not None:
            predicted["output"] = greedy(net, batch, tokens.config.max_target)
        return predicted

    def evaluate(results: list[tuple[dict[str, np.ndarray], Batch]]) -> dict[str, float]:
        real = np.concatenate([batch["weight"] for _, batch in results]) > 0

        def joined(rows: Sequence[Any]) -> np.ndarray:
            return np.concatenate(rows)[real]

        count = joined([batch["target_length"] for _, batch in results]).sum()
        metrics = {
            "loss": float(joined([p["nll"] for p, _ in results]).sum() / count),
            "token_accuracy": float(joined([p["hits"] for p, _ in results]).sum() / count),
        }
        if metric is not None:
            outputs = tokens.target.decode_batch(joined([p["output"] for p, _ in results]))
            references = joined([batch["target_text"] for _, batch in results]).tolist()
            metrics |= metric(outputs, references)
        return metrics

    def build_model(rngs: nnx.Rngs) -> nnx.Module:
        return model.build(tokens, rngs=rngs)

    return Task(build_model, loss, predict, evaluate, batches, RULES)


def _logits(model: Any, batch: Batch) -> jax.Array:
    return model(batch["source"], batch["target_in"], source_lengths=batch["source_length"])


def _summed(x: jax.Array, batch: Batch) -> jax.Array:
    """The sum over the tokens of each target, `[B]`."""
    inside = jnp.arange(x.shape[1]) < batch["target_length"][:, None]
    return jnp.sum(jnp.where(inside, x, 0), axis=1)


def greedy(model: Any, batch: Batch, max_tokens: int) -> jax.Array:
    """The likeliest token after each one, until all outputs of a batch have ended.

    Args:
        model: an encoder-decoder.
        batch: has `source` and `source_length`.
        max_tokens: longest output, the end included.

    Returns:
        int32 `[B, max_tokens]`, `PAD_ID` after the end.
    """
    begin = jnp.full((batch["source"].shape[0], 1), BEGIN_ID, jnp.int32)
    cache = model.init_cache(batch["source"], batch["source_length"], max_tokens)
    return generate(
        model.decode, cache, begin, max_tokens=max_tokens, end=END_ID, pad=PAD_ID
    ).tokens
