"""Models that write a text for a text: their loss by hand, their outputs, their options."""

from __future__ import annotations

import dataclasses
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from train.common.attention_config import AttentionConfig
from train.common.pairs.batches import PairBatches
from train.common.pairs.models import RULES, SeqModelConfig
from train.common.pairs.task import greedy, seq_task
from train.common.pairs.text_pairs import Pair, TextPairs
from train.common.pairs.tokenise import BEGIN_ID, END_ID, PAD_ID, SeqTokeniserConfig
from train.common.pairs.tokens import PairTokens, PairTokensConfig
from train.common.task import Task

SMALL = SeqModelConfig(features=8, encoder_layers=1, decoder_layers=1, heads=2, dropout=0.0)
LENGTHS = (1, 4, 2, 6, 3, 5)


@pytest.fixture(scope="module")
def data() -> TextPairs:
    some = tuple(
        Pair(" ".join("abcdefg"[:n]), " ".join("gfedcba"[: 1 + n * 2 % 5])) for n in LENGTHS
    )
    return TextPairs({"train": some, "validation": some, "test": some}, "letters")


@pytest.fixture(scope="module")
def tokens(data: TextPairs) -> PairTokens:
    config = PairTokensConfig(SeqTokeniserConfig(kind="word"), max_source=8, max_target=7)
    return config.train(data)


def task_of(data: TextPairs, tokens: PairTokens, *, smoothing=0.0, metric=None, **more) -> Task:
    model = dataclasses.replace(SMALL, **more)
    batches = PairBatches(data, tokens)
    return seq_task(model, tokens, batches, smoothing=smoothing, metric=metric)


def first_batch(task: Task) -> dict[str, jax.Array]:
    batch = next(iter(task.data.train_batches(batch_size=6, seed=0, start_step=0)))
    return {name: jnp.asarray(x) for name, x in batch.items()}


def _read(batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    return batch["source"], batch["target_in"]


@pytest.mark.parametrize("smoothing", [pytest.param(0.0, marks=pytest.mark.slow), 0.3])
def test_the_loss_is_the_summed_cross_entropy_over_the_mean_length(
    data: TextPairs, tokens: PairTokens, smoothing: float
) -> None:
    task = task_of(data, tokens, smoothing=smoothing)
    model, batch = task.build_model(nnx.Rngs(0)), first_batch(task)
    logits = nnx.jit(lambda model: model(*_read(batch), source_lengths=batch["source_length"]))
    logprobs = np.asarray(jax.nn.log_softmax(logits(model)))
    total = 0.0
    for b, length in enumerate(np.asarray(batch["target_length"])):
        for t in range(length):
            target = int(batch["target_out"][b, t])
            total -= (1 - smoothing) * logprobs[b, t, target]
            total -= smoothing * logprobs[b, t].mean()
    mean_length = np.mean([2 + n * 2 % 5 for n in LENGTHS])
    found = nnx.jit(task.loss)(model, batch)[0]
    np.testing.assert_allclose(found, total / 6 / mean_length, rtol=1e-5)


def test_parts_of_a_batch_have_the_mean_of_their_losses(
    data: TextPairs, tokens: PairTokens
) -> None:
    task = task_of(data, tokens, smoothing=0.3)
    model, batch = task.build_model(nnx.Rngs(0)), first_batch(task)
    parts = [{name: x[i : i + 2] for name, x in batch.items()} for i in (0, 2, 4)]
    loss = nnx.jit(task.loss)
    by_parts = np.mean([loss(model, part)[0] for part in parts])
    np.testing.assert_allclose(loss(model, batch)[0], by_parts, rtol=1e-5)


def test_evaluation_is_in_nats_per_token_whatever_the_batches(
    data: TextPairs, tokens: PairTokens
) -> None:
    seen: list[tuple[str, ...]] = []

    def metric(outputs, references):
        seen.append(tuple(references))
        return {"count": float(len(outputs))}

    task = task_of(data, tokens, metric=metric)
    model = task.build_model(nnx.Rngs(0))
    model.eval()
    batches = list(task.data.eval_batches("test", batch_size=4))
    arrays = [{k: v for k, v in b.items() if v.dtype != object} for b in batches]
    predict = nnx.jit(task.predict)
    predicted = [jax.device_get(predict(model, b)) for b in arrays]
    result = task.evaluate(list(zip(predicted, batches, strict=True)))
    assert result.keys() == {"loss", "token_accuracy", "count"}
    assert result["count"] == 6 and 0 <= result["token_accuracy"] <= 1
    assert sorted(seen[0]) == sorted(pair.target for pair in data.splits["test"])
    # A batch that has every pair once has the same number as its loss.
    whole = next(iter(task.data.eval_batches("test", batch_size=6)))
    every = {name: x for name, x in whole.items() if x.dtype != object}
    np.testing.assert_allclose(nnx.jit(task.loss)(model, every)[0], result["loss"], rtol=1e-5)


def test_greedy_outputs_are_the_likeliest_tokens_one_by_one(
    data: TextPairs, tokens: PairTokens
) -> None:
    task = task_of(data, tokens, attention=AttentionConfig(positions="sinusoidal"))
    model, batch = task.build_model(nnx.Rngs(3)), first_batch(task)
    model.eval()
    found = np.asarray(nnx.jit(lambda model: greedy(model, batch, 7))(model))
    inputs = np.full((6, 8), PAD_ID, np.int32)
    inputs[:, 0] = BEGIN_ID
    ended = np.zeros(6, bool)
    read = nnx.jit(
        lambda model, x: model(batch["source"], x, source_lengths=batch["source_length"])
    )
    for t in range(7):
        token = np.where(ended, PAD_ID, np.asarray(read(model, inputs))[:, t].argmax(axis=-1))
        np.testing.assert_array_equal(found[:, t], token)
        ended |= token == END_ID
        inputs[:, t + 1] = token


MODELS = [
    {"copy": True},
    {"name": "rnn-bahdanau", "cell": "gru"},
    {"name": "rnn-luong", "score": "dot", "copy": True},
    {"tied": "none", "norm": "rms", "activation": "swiglu", "norm_position": "post"},
    {"attention": AttentionConfig("alibi", sinks=True, qk_norm="rms", soft_cap=20.0)},
    {"attention": AttentionConfig("relative", window=3, kv_heads=1), "scan_layers": True},
    {"attention": AttentionConfig("t5", bias=False)},
    {"attention": AttentionConfig("learned")},
    {"attention": AttentionConfig("none")},
]


@pytest.mark.parametrize("more", MODELS, ids=str)
def test_every_option_makes_a_model_that_fits_a_mesh(data, tokens, more: dict) -> None:
    task = task_of(data, tokens, **{"features": 16, **more})
    model = nnx.eval_shape(lambda: task.build_model(nnx.Rngs(0)))
    for path, x in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        assert RULES.logical(".".join(map(str, path)), x.shape) is not None, path
    batch = first_batch(task)
    loss, _ = nnx.eval_shape(lambda model: task.loss(model, batch), model)
    assert loss.shape == () and loss.dtype == jnp.float32


def test_options_that_contradict_each_other_are_refused(data, tokens) -> None:
    with pytest.raises(ValueError, match=r"expected label_smoothing 0, got 0\.1"):
        task_of(data, tokens, copy=True, smoothing=0.1)
    with pytest.raises(ValueError, match="multiple of heads 4"):
        SeqModelConfig(features=30)
    assert SeqModelConfig(name="rnn-luong", features=30).features == 30
    for field in ("reach", "window", "kv_heads", "soft_cap"):
        with pytest.raises(ValueError, match=field):
            AttentionConfig(**{field: 0})
    with pytest.raises(ValueError, match="attention dropout"):
        AttentionConfig(dropout=1.0)
    config = SeqModelConfig(attention=AttentionConfig("t5", window=4))
    assert SeqModelConfig.from_json(dataclasses.asdict(config)) == config


def test_batches_are_drawn_from_the_training_pairs(data, tokens) -> None:
    task = task_of(data, tokens)
    batches = islice(task.data.train_batches(batch_size=6, seed=1, start_step=0), 5)
    assert all(int(batch["target_length"].sum()) > 0 for batch in batches)
