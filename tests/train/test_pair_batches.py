"""Batches of pairs: the same from any starting point, every pair once, padded as promised."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from train.common.order import Order, one_pass
from train.common.pairs.batches import CHUNK, COARSE, WIDTHS, PairBatches, width
from train.common.pairs.text_pairs import Pair, TextPairs
from train.common.pairs.tokenise import BEGIN_ID, END_ID, PAD_ID, SeqTokeniserConfig
from train.common.pairs.tokens import PairTokensConfig


def make(
    train: int = 300, too_long: str = "skip", max_target: int = 24, *, start: int = 0, **more: str
) -> PairBatches:
    def some(count: int, start: int) -> tuple[Pair, ...]:
        # Pair i repeats the word i, a different number of times on either side.
        return tuple(
            Pair(" ".join([f"w{i}"] * (1 + i * 7 % 30)), " ".join([f"w{i}"] * (1 + i * 5 % 26)))
            for i in range(start, start + count)
        )

    data = TextPairs(
        {"train": some(train, start), "validation": some(7, 0), "test": some(9, 20)}, "numbers"
    )
    tokens = PairTokensConfig(
        SeqTokeniserConfig(kind="word"),
        max_source=32,
        max_target=max_target,
        too_long=too_long,
        **more,
    )
    return PairBatches(data, tokens.train(data))


def first(batches: PairBatches, count: int, *, start: int = 0, seed: int = 3, rows=None):
    found = batches.train_batches(batch_size=8, seed=seed, start_step=start, rows=rows)
    return list(islice(found, count))


def assert_same(left: list, right: list) -> None:
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("start", [1, CHUNK - 1, CHUNK, 2 * CHUNK + 5])
def test_batches_follow_from_the_step_number(start: int) -> None:
    assert_same(first(make(), start + 4)[start:], first(make(), 4, start=start))


def test_what_is_read_and_written_is_shifted_by_one() -> None:
    for batch in first(make(), 20):
        for b in range(8):
            count = batch["target_length"][b]
            inputs, outputs = batch["target_in"][b], batch["target_out"][b]
            assert inputs[0] == BEGIN_ID and outputs[count - 1] == END_ID
            np.testing.assert_array_equal(inputs[1:count], outputs[: count - 1])
            assert (inputs[count:] == PAD_ID).all() and (outputs[count:] == PAD_ID).all()
            length = batch["source_length"][b]
            assert batch["source"][b, length - 1] == END_ID
            assert (batch["source"][b, length:] == PAD_ID).all()
            assert (batch["source"][b, :length] != PAD_ID).all()
        for name, limit in (("source", 32), ("target_in", 24)):
            assert batch[name].shape[1] in {*WIDTHS, limit}


def test_coarse_padding_has_fewer_shapes() -> None:
    shapes = {
        padding: {
            (b["source"].shape[1], b["target_in"].shape[1])
            for b in first(make(padding=padding), 60)
        }
        for padding in ("fine", "coarse")
    }
    assert len(shapes["coarse"]) < len(shapes["fine"])
    assert {width for shape in shapes["coarse"] for width in shape} <= {*COARSE, 24}


def test_rows_are_a_share_of_the_whole_batch() -> None:
    rows = np.array([1, 6])
    whole, share = first(make(), 6), first(make(), 6, rows=rows)
    assert_same([{k: v[rows] for k, v in batch.items()} for batch in whole], share)
    evaluated = list(make().eval_batches("validation", batch_size=4))
    shares = list(make().eval_batches("validation", batch_size=4, rows=rows[:1]))
    assert_same([{k: v[rows[:1]] for k, v in batch.items()} for batch in evaluated], shares)


def test_an_evaluation_reads_every_pair_once() -> None:
    batches = list(make().eval_batches("test", batch_size=4))
    assert all(len(batch["weight"]) == 4 for batch in batches)
    real = np.concatenate([batch["weight"] for batch in batches]) > 0
    index = np.concatenate([batch["index"] for batch in batches])[real]
    texts = np.concatenate([batch["source_text"] for batch in batches])[real]
    assert sorted(index.tolist()) == list(range(9))
    assert [text.split()[0] for text in texts] == [f"w{20 + i}" for i in index]
    # One width of targets for all, so that few programs are compiled.
    assert {batch["target_in"].shape[1] for batch in batches} == {24}
    with pytest.raises(ValueError, match="no split 'dev'"):
        next(iter(make().eval_batches("dev", batch_size=4)))


def test_long_pairs_are_left_out_or_cut_and_counted() -> None:
    skips, cuts = make(max_target=20), make(max_target=20, too_long="cut")
    too_long = sum(1 + i * 5 % 26 > 19 for i in range(300))
    assert skips.train_size == 300 - too_long and cuts.train_size == 300
    assert skips.notes()[0].startswith(f"left out {too_long} train pairs of more than 32 source")
    assert cuts.notes()[0].startswith(f"cut {too_long} train pairs")
    assert skips.notes()[1] == cuts.notes()[1] and "cut 2 validation pairs" in skips.notes()[1]
    assert max(batch["target_length"].max() for batch in first(cuts, 40)) == 20
    with pytest.raises(ValueError, match="all 5 training pairs are longer than max_source=32"):
        make(5, max_target=4, start=1)


def test_mean_target_is_over_the_training_pairs_that_stay() -> None:
    lengths = [2 + i * 5 % 26 for i in range(300) if 1 + i * 5 % 26 <= 23]
    np.testing.assert_allclose(make().mean_target, np.mean(lengths))


def test_widths_hold_the_longest() -> None:
    for longest in range(1, 100):
        for widths in (WIDTHS, COARSE):
            assert longest <= width(longest, 99, widths) <= 99
    assert width(9, 100) == 12 and width(97, 100) == 100 and width(9, 100, COARSE) == 16


def test_an_order_takes_every_example_once_per_pass() -> None:
    order = Order(np.arange(40) % 7, 4, 0, chunk=5)
    for start in (0, 10):
        seen = np.concatenate([order[step] for step in range(start, start + 10)])
        assert sorted(seen.tolist()) == list(range(40))


def test_one_pass_fills_the_last_batch_with_its_own() -> None:
    found = list(one_pass(np.array([3, 1, 2]), 2))
    np.testing.assert_array_equal([index for index, _ in found], [[1, 2], [0, 0]])
    np.testing.assert_array_equal([weight for _, weight in found], [[1, 1], [1, 0]])
