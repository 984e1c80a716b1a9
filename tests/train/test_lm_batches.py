"""Rows of documents: every token is predicted once, and no document sees another."""

from __future__ import annotations

from itertools import chain, islice

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from train.common.lm.batches import LmBatches, packed
from train.common.lm.documents import Documents
from train.common.lm.models import LmModelConfig
from train.common.lm.packing import Piece, joined, pack, pieces
from train.common.lm.task import target_nats, text_metrics
from train.common.lm.tokenise import BOUNDARY, CODE_POINTS, LmTokeniserConfig

LENGTH = 8
TRAIN = ("abcdefg" * 3, "bad", "a", "cabbage faced", "dead bee " * 2)


def batches(windows: str = "packed", held_out: tuple[str, ...] = ("bead", "fab xa")) -> LmBatches:
    data = Documents({"train": TRAIN, "validation": held_out}, "here")
    tokeniser = LmTokeniserConfig(kind="character").train(TRAIN)
    return LmBatches(data, tokeniser, LENGTH, windows)


@given(sizes=st.lists(st.integers(1, 13), min_size=1, max_size=60))
def test_packing_loses_nothing_overfills_nothing_and_wastes_little(sizes: list[int]) -> None:
    rows = pack(sizes, 13)
    assert sorted(chain.from_iterable(rows)) == list(range(len(sizes)))
    filled = [sum(sizes[i] for i in row) for row in rows]
    assert max(filled) <= 13
    # No two rows could be one: what best fit promises.
    assert sum(2 * room <= 13 for room in filled) <= 1


def test_a_perfect_fit_is_found() -> None:
    assert len(pack([4, 6, 2, 7, 5], 12)) == 2


def test_pieces_cover_every_prediction_once() -> None:
    stream = joined([np.arange(2, 2 + n) for n in (20, 3, 8, 7)])
    cut = pieces(stream, LENGTH)
    predicted = sorted(place for p in cut for place in range(p.start + 1, p.stop))
    assert predicted == list(range(1, len(stream.tokens)))
    assert max(piece.size for piece in cut) == LENGTH
    # The document of 7 letters and its end fill a row; that of 8 leaves its end to another.
    assert [p.size for p in cut] == [8, 8, 5, 4, 8, 1, 8]


def test_targets_follow_tokens_and_positions_restart() -> None:
    stream = joined([np.array([5, 6, 7]), np.array([8, 9])])
    batch = packed(stream, [[Piece(0, 5), Piece(4, 8)], []], LENGTH)
    assert batch["tokens"][0].tolist() == [0, 5, 6, 7, 0, 8, 9, 0]
    assert batch["targets"][0].tolist() == [5, 6, 7, 0, 8, 9, 0, 0]
    assert batch["segments"][0].tolist() == [1, 1, 1, 1, 2, 2, 2, 0]
    assert batch["positions"][0].tolist() == [0, 1, 2, 3, 0, 1, 2, 0]
    assert batch["weight"].tolist() == [7, 0]


@pytest.mark.parametrize("windows", ["packed", "random"])
def test_a_batch_depends_on_seed_and_step_alone(windows: str) -> None:
    data = batches(windows)

    def some(seed: int, start: int, count: int) -> list:
        return list(islice(data.train_batches(batch_size=3, seed=seed, start_step=start), count))

    whole, later = some(1, 0, 7), some(1, 4, 3)
    for expected, found in zip(whole[4:], later, strict=True):
        jax.tree.map(np.testing.assert_array_equal, expected, found)
    assert any(
        np.any(a["tokens"] != b["tokens"]) for a, b in zip(whole, some(2, 0, 7), strict=True)
    )
    rows = np.array([0, 2])
    share = next(data.train_batches(batch_size=3, seed=1, start_step=5, rows=rows))
    jax.tree.map(np.testing.assert_array_equal, {k: v[rows] for k, v in whole[5].items()}, share)


def test_random_windows_begin_anywhere_and_stay_in_their_documents() -> None:
    data = batches("random")
    for batch in islice(data.train_batches(batch_size=50, seed=0, start_step=0), 4):
        np.testing.assert_array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
        begins = batch["tokens"] == BOUNDARY
        steps = np.diff(batch["segments"], axis=1)
        np.testing.assert_array_equal(steps > 0, begins[:, 1:])
        np.testing.assert_array_equal(batch["positions"][begins], 0)
        np.testing.assert_array_equal(batch["segments"][:, 0], 1)
        goes_on = ~begins[:, 1:]
        np.testing.assert_array_equal(np.diff(batch["positions"], axis=1)[goes_on], 1)
        assert np.any(batch["tokens"][:, 0] != BOUNDARY)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_an_evaluation_counts_every_token_byte_and_character_once(size: int) -> None:
    held_out = ("bead", "fab xa", "ä€😀 bee" * 3)
    found = list(batches(held_out=held_out).eval_batches("validation", batch_size=size))
    real = [batch["weight"] > 0 for batch in found]
    assert {len(batch["tokens"]) for batch in found} == {size}

    def total(name: str) -> float:
        return sum(float(b[name][r].sum()) for b, r in zip(found, real, strict=True))

    assert total("weight") == sum(len(d) + 1 for d in held_out)
    assert total("bytes") == sum(len(d.encode()) for d in held_out)
    assert total("characters") == sum(map(len, held_out))
    assert total("unknown") == sum(c not in "".join(TRAIN) for d in held_out for c in d)
    index = np.concatenate([b["index"][r] for b, r in zip(found, real, strict=True)])
    assert sorted(index) == list(range(len(index)))


def test_there_is_no_such_split() -> None:
    with pytest.raises(ValueError, match="no split 'test'"):
        list(batches().eval_batches("test", batch_size=1))


def test_a_text_shorter_than_a_window_is_refused() -> None:
    data = Documents({"train": ("ab",), "validation": ("ab",)}, "here")
    tokeniser = LmTokeniserConfig(kind="byte").train(("ab",))
    with pytest.raises(ValueError, match="more training tokens than length 8"):
        LmBatches(data, tokeniser, LENGTH, "random")


def test_the_summary_says_what_is_cut_and_unknown() -> None:
    lines = batches(held_out=("xyz" * 4,)).notes()
    assert "13 tokens in 2 rows of 8" in lines[1]
    assert "1 cuts inside documents" in lines[1] and "12 unknown characters" in lines[1]


@pytest.fixture(scope="module")
def model() -> nnx.Module:
    config = LmModelConfig(features=8, layers=2, heads=2, dropout=0.0)
    return config.build(vocabulary=12, length=LENGTH, rngs=nnx.Rngs(0))


def test_no_document_sees_another(model: nnx.Module) -> None:
    first, other = np.array([5, 6, 7]), np.array([9, 9, 9])
    second = np.array([3, 4])

    def losses(*documents: np.ndarray) -> np.ndarray:
        stream = joined(documents)
        return np.asarray(target_nats(model, packed(stream, [pieces(stream, LENGTH)], LENGTH)))[0]

    together, changed, alone = losses(first, second), losses(other, second), losses(second)
    np.testing.assert_allclose(together[4:7], alone[:3], rtol=1e-5)
    np.testing.assert_allclose(together[4:7], changed[4:7], rtol=1e-6)
    assert np.all(np.abs(together[:4] - changed[:4])[1:3] > 1e-3)
    np.testing.assert_array_equal(together[7:], 0.0)


def test_metrics_follow_their_definitions() -> None:
    rows = {"weight": [3.0, 1.0, 0.0], "bytes": [4, 1, 9], "characters": [2, 1, 9]}
    batch = {k: np.array(v) for k, v in {**rows, "unknown": [1, 0, 9]}.items()}
    found = text_metrics([({"nats": np.array([5.0, 1.0, 99.0])}, batch)])
    code = 6.0 + np.log(CODE_POINTS)
    assert found == pytest.approx(
        {
            "loss": 1.5,
            "perplexity": np.exp(1.5),
            "bits_per_byte": code / np.log(2) / 5,
            "nats_per_character": code / 3,
        }
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"features": 0}, "features"),
        ({"layers": 0}, "layers"),
        ({"features": 10, "heads": 3}, "multiple of heads 3"),
        ({"dropout": 1.0}, "dropout"),
        ({"logit_cap": 0.0}, "logit_cap"),
    ],
)
def test_models_that_cannot_be_are_refused(option: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LmModelConfig(**option)
