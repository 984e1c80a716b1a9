import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from attnjax.dropout import keep
from attnjax.typing import Index

SIZES = {"B": 2, "N": 3, "T": 5, "S": 7}


def _index():
    grids = np.meshgrid(*(np.arange(n) for n in SIZES.values()), indexing="ij", sparse=True)
    return Index(*(jnp.asarray(g) for g in grids))


@pytest.mark.first(2)
@pytest.mark.parametrize("shared", ["", "B", "BN", "N", "T", "S", "BNS"])
def test_pattern_is_constant_along_the_shared_axes_alone(shared):
    words = attnjax.Dropout(0.5, jax.random.key(1)).words()
    pattern = np.asarray(
        jnp.broadcast_to(keep(words, 0.5, _index(), shared), tuple(SIZES.values()))
    )
    for axis, letter in enumerate(SIZES):
        constant = bool((pattern == pattern.take([0], axis=axis)).all())
        assert constant == (letter in shared), letter


def test_shared_pattern_is_that_of_the_first_head_and_batch_element():
    words = attnjax.Dropout(0.5, jax.random.key(1)).words()
    np.testing.assert_array_equal(
        keep(words, 0.5, _index(), "BN")[0, 0], keep(words, 0.5, _index(), "")[0, 0]
    )


def test_attention_drops_the_same_weights_in_every_head():
    size = SIZES
    q, k = jnp.zeros((size["B"], size["T"], size["N"], 1)), jnp.zeros((size["B"], size["S"], 1, 1))
    v = jnp.broadcast_to(jnp.eye(size["S"]), (size["B"], size["S"], size["S"]))[:, :, None]
    dropout = attnjax.Dropout(0.5, jax.random.key(2), shared="BN")
    weights = attnjax.attention(q, k, v, dropout=dropout)  # [B, T, N, S], as v is the identity
    np.testing.assert_allclose(weights, np.broadcast_to(weights[:1, :, :1], weights.shape))
    kept = keep(dropout.words(), 0.5, _index(), "BN")[0, 0]
    np.testing.assert_allclose(weights[0, :, 0], kept * 2 / size["S"], rtol=1e-6)


@pytest.mark.parametrize("shared", ["H", "bn", ("B", "N"), None])
def test_wrong_shared(shared):
    with pytest.raises(ValueError, match=r"Dropout\.shared: expected letters among B, N, T, S"):
        attnjax.Dropout(0.1, jax.random.key(0), shared=shared)
