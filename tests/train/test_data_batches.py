"""Batches: every example once per pass, the same from any starting point, padded as promised."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from train.common.order import CHUNK
from train.common.text.batches import TextBatches, TextEncoder
from train.common.text.labelled_text import Example, LabelledText, hold_out
from train.common.text.subwords import SubwordConfig
from train.common.tokenise import TokeniserConfig


def make(train: int = 70, subwords: int = 50, max_tokens: int = 64) -> TextBatches:
    def some(count: int, start: int) -> tuple[Example, ...]:
        # Text i consists of the number i, repeated a different number of times.
        return tuple(
            Example(" ".join([f"w{i}"] * (1 + i * 7 % 30)), i % 3)
            for i in range(start, start + count)
        )

    splits = {"train": some(train, 0), "validation": some(5, 1000), "test": some(7, 2000)}
    data = LabelledText(splits, ("a", "b", "c"), origin="numbers")
    tokeniser = TokeniserConfig(max_tokens=max_tokens).train(t for t, _ in data.splits["train"])
    return TextBatches(data, TextEncoder(tokeniser, SubwordConfig(buckets=subwords)))


def first(batches: TextBatches, count: int, *, start: int = 0, seed: int = 3, size: int = 4):
    found = batches.train_batches(batch_size=size, seed=seed, start_step=start)
    return list(islice(found, count))


def assert_same(left: list, right: list) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("start", [1, CHUNK - 1, CHUNK, 3 * CHUNK + 5])
def test_batches_follow_from_the_step_number(start: int) -> None:
    batches = make()
    assert_same(first(batches, start + 6)[start:], first(make(), 6, start=start))


def test_other_seeds_and_other_passes_give_other_orders() -> None:
    batches = make()
    one, other = first(batches, 4), first(batches, 4, seed=4)
    assert any(not np.array_equal(a["ids"], b["ids"]) for a, b in zip(one, other, strict=True))
    size = 70 * CHUNK  # a chunk of exactly CHUNK whole passes
    ids = [b["label"].tolist() for b in first(batches, 2 * CHUNK, size=size // CHUNK)]
    assert ids[0] != ids[CHUNK]


@pytest.mark.parametrize("train", [64, 70, 3])
def test_every_example_comes_once_per_pass(train: int) -> None:
    batches = make(train)
    passes = CHUNK * 4  # batches of 4: this many batches of `train` chunks hold whole passes
    seen = np.zeros(train, int)
    for batch in first(batches, CHUNK * train):
        for ids in batch["ids"]:
            word = ids[0]
            seen[word - 2] += 1
    assert (seen == passes).all()


def test_arrays_are_padded_and_typed_as_promised() -> None:
    for batch in first(make(), 2 * CHUNK):
        width = batch["ids"].shape[1]
        assert batch["ids"].shape == (4, width) and batch["ids"].dtype == np.int32
        assert batch["subwords"].shape == (4, width, 24) and batch["subwords"].dtype == np.int32
        assert batch["length"].dtype == batch["label"].dtype == np.int32
        inside = np.arange(width) < batch["length"][:, None]
        assert (batch["ids"][inside] > 0).all() and (batch["ids"][~inside] == 0).all()
        assert (batch["subwords"][~inside] == 0).all() and (batch["subwords"][inside] > 0).any()


def test_batches_hold_texts_of_similar_length_at_few_widths() -> None:
    found = first(make(train=600), 4 * CHUNK, size=8)
    assert {b["ids"].shape[1] for b in found} <= {24, 48}
    spread = [b["length"].max() - b["length"].min() for b in found]
    assert np.mean(spread) < 6  # of lengths 1 to 30, drawn at random it would be about 23


def test_without_subwords_there_is_no_such_array() -> None:
    assert "subwords" not in first(make(subwords=0), 1)[0]


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_evaluation_passes_once_and_marks_the_padding(batch_size: int) -> None:
    batches = make()
    found = list(batches.eval_batches("test", batch_size=batch_size))
    assert all(len(b["label"]) == len(b["weight"]) == batch_size for b in found)
    real = np.concatenate([b["index"][b["weight"] > 0] for b in found])
    assert sorted(real) == list(range(7))
    labels = np.concatenate([b["label"][b["weight"] > 0] for b in found])
    np.testing.assert_array_equal(labels, (real + 2000) % 3)
    assert set(np.concatenate([b["weight"] for b in found])) <= {0.0, 1.0}


@pytest.mark.parametrize("rows", [[0, 1, 2], [3, 4, 5], [1, 4]])
def test_a_share_of_a_batch_is_those_rows_of_it(rows: list[int]) -> None:
    """As wide as the whole batch, whichever of its texts is the longest."""
    batches, places = make(), np.array(rows)
    training = [
        islice(batches.train_batches(batch_size=6, seed=3, start_step=5, rows=wanted), 2 * CHUNK)
        for wanted in (None, places)
    ]
    evaluation = [
        batches.eval_batches("test", batch_size=6, rows=wanted) for wanted in (None, places)
    ]
    for whole, share in (training, evaluation):
        expected = [{name: x[places] for name, x in batch.items()} for batch in whole]
        assert_same(expected, list(share))


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="no split 'dev'"):
        next(iter(make().eval_batches("dev", batch_size=2)))


def test_cut_texts_are_counted() -> None:
    assert make().truncated("train") == 0
    batches = make(max_tokens=10)
    assert batches.truncated("train") == sum(1 + i * 7 % 30 >= 10 for i in range(70))
    assert max(b["ids"].shape[1] for b in first(batches, CHUNK)) == 10


def test_held_out_examples_are_a_partition() -> None:
    examples = [Example(str(i), 0) for i in range(50)]
    splits = hold_out(examples, {"validation": 0.1, "test": 0.25}, seed=0)
    assert [len(splits[s]) for s in ("validation", "test", "train")] == [5, 13, 32]
    assert sorted(int(t) for s in splits.values() for t, _ in s) == list(range(50))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_empty_split_is_refused(split: str) -> None:
    splits = {s: (Example("a", 0),) for s in ("train", "validation", "test")}
    with pytest.raises(ValueError, match=f"the {split} split holds no examples"):
        LabelledText({**splits, split: ()}, ("a", "b"), origin="here")


def test_the_fingerprint_changes_with_any_record() -> None:
    splits = {s: (Example("a", 0), Example("b", 1)) for s in ("train", "validation", "test")}
    changed = [
        {**splits, "test": (Example("a", 1), Example("b", 1))},
        {**splits, "test": (Example("a ", 0), Example("b", 1))},
        {**splits, "test": (Example("b", 1), Example("a", 0))},
        {**splits, "test": splits["test"][:1]},
    ]
    data = [LabelledText(s, ("x", "y"), origin="here") for s in (splits, *changed)]
    renamed = LabelledText(splits, ("x", "z"), origin="here")
    assert len({d.fingerprint for d in [*data, renamed]}) == len(changed) + 2
    elsewhere = LabelledText(splits, ("x", "y"), origin="there", notes=("odd",))
    assert elsewhere.fingerprint == data[0].fingerprint
