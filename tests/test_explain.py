"""`attnjax.explain` says what `attention` does, and runs nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from attnjax.ops.softmax.dispatch import IMPLEMENTATIONS


def shapes(B=1, T=2048, S=2048, N=4, K=2, H=16, D=8, dtype=jnp.float32):
    return tuple(jax.ShapeDtypeStruct(s, dtype) for s in ((B, T, N, H), (B, S, K, H), (B, S, K, D)))


def test_counts_the_blocks_of_a_causal_mask():
    plan = attnjax.explain(*shapes(), mask=attnjax.Causal())
    assert plan.implementation == "blockwise"
    # 4 x 4 blocks of 512: 6 under the diagonal need no mask, 4 on it do.
    assert plan.cost.blocks == (10, 6, 16)
    assert plan.cost.flops_forward == 2 * 10 * 512 * 512 * 4 * (16 + 8)
    assert "10 of 16, 6 without the mask" in str(plan)
    assert "not reference: it needs O(T * S) memory" in str(plan)


def test_counts_blocks_for_each_batch_element():
    lengths = np.array([512, 1024, 0], np.int32)
    plan = attnjax.explain(*shapes(B=3), mask=attnjax.Lengths(None, lengths))
    assert plan.cost.blocks == (4 * (1 + 2), 4 * (1 + 2), 48)


def test_an_unknown_mask_array_gives_an_upper_bound():
    ids = jax.ShapeDtypeStruct((1, 2048), jnp.int32)
    plan = attnjax.explain(*shapes(), mask=attnjax.Segments(ids))
    assert plan.cost.blocks == (None, None, 16)
    assert "up to 16" in str(plan)


def test_shapes_may_stand_for_every_array():
    f = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)  # noqa: E731
    plan = attnjax.explain(
        *shapes(),
        mask=jax.ShapeDtypeStruct((2048, 2048), jnp.bool_),
        score_mod=(attnjax.alibi(f(4)), attnjax.relative_bias(f(4, 9)), attnjax.bias(f(2048, 1))),
        sinks=f(4),
        scale=f(),
        dropout=attnjax.Dropout(0.1, jax.random.key(0)),
        stats=True,
    )
    assert plan.implementation == "blockwise"


def test_a_named_implementation_is_kept_and_every_other_has_a_reason():
    plan = attnjax.explain(*shapes(), implementation="reference")
    assert plan.implementation == "reference"
    assert set(plan.reasons) == IMPLEMENTATIONS.keys() - {"reference"}
    assert set(plan.reasons.values()) == {"implementation='reference' was asked for"}
    assert plan.cost.blocks == (16, 0, 16)


def test_functions_of_the_caller_are_noted():
    plan = attnjax.explain(*shapes(), score_mod=lambda s, b, h, q, k: s)
    assert any("compiles anew" in note for note in plan.notes)


def test_an_empty_axis_is_explained():
    plan = attnjax.explain(*shapes(T=0))
    assert plan.cost.blocks == (0, 0, 0)
    assert any("empty" in note for note in plan.notes)


def test_raises_as_the_call_would():
    q, k, v = shapes()
    with pytest.raises(ValueError, match="mask: expected a bool array"):
        attnjax.explain(q, k, v, mask=jax.ShapeDtypeStruct((2048, 2048), jnp.float32))
    with pytest.raises(ValueError, match="implementation"):
        attnjax.explain(q, k, v, implementation="fastest")


@pytest.mark.parametrize("T", [4096, 16384])
def test_temporaries_are_about_what_the_compiler_allots(T):
    q, k, v = shapes(T=T, S=T, N=4, K=4, H=64, D=64)
    plan = attnjax.explain(q, k, v, mask=attnjax.Causal())

    def loss(q, k, v):
        return attnjax.attention(q, k, v, mask=attnjax.Causal()).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, v).compile()
    allotted = compiled.memory_analysis().temp_size_in_bytes
    assert 0.5 < plan.cost.temporaries_backward / allotted < 2
    scores = T * T * 4 * 4
    assert T < 8192 or allotted < scores / 4
