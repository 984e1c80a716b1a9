import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from attnjax.ops.additive.blockwise import attend as attend_blockwise
from attnjax.ops.additive.problem import AdditiveProblem
from attnjax.validate import make_problem

B, T, S, K, G, H, D = 2, 13, 11, 3, 2, 5, 7
N = K * G
IDS = jnp.asarray(np.arange(13) // 4)
NAMES = ("q", "k", "v", "w", "bias", "sinks")
SETTINGS = {
    "full": {},
    "causal": {"mask": attnjax.Causal(offset=S - T)},
    "packed": {"mask": attnjax.Segments(IDS, IDS[:S]) & ~attnjax.Strided(3)},
    "some empty": {"mask": attnjax.Prefix(jnp.array([0, 6])) & attnjax.Lengths(5, None)},
    "dense": {"mask": jax.random.bernoulli(jax.random.key(8), 0.5, (B, N, T, S))},
    "scores": {"score_mod": (attnjax.soft_cap(0.7), attnjax.alibi(N))},
    "dropout": {"dropout": attnjax.Dropout(0.4, jax.random.key(9)), "mask": attnjax.Causal()},
}


def _arrays(dtype=jnp.float32):
    shapes = ((B, T, N, H), (B, S, K, H), (B, S, K, D), (N, H), (N, H), (N,))
    keys = jax.random.split(jax.random.key(0), len(shapes))
    pairs = zip(keys, shapes, strict=True)
    return tuple(jax.random.normal(key, shape).astype(dtype) for key, shape in pairs)


def _reference(q, k, v, w, bias, sinks, **options):
    return attnjax.additive_attention(
        q, k, v, w, bias=bias, sinks=sinks, stats=True, implementation="reference", **options
    )


def _blockwise(q, k, v, w, bias, sinks, *, block_q=5, block_k=4, **options):
    """Runs through several blocks, with ragged ends; the public call's blocks are larger."""
    unset = dict.fromkeys(("mask", "score_mod", "scale", "dropout", "precision"), None)
    softmax = make_problem(q, k, v, **(unset | options), sinks=sinks, stats=True)
    return attend_blockwise(AdditiveProblem(softmax, w, bias), block_q=block_q, block_k=block_k)


def _loss(attend, *arrays):
    out, stats = attend(*arrays)
    terms = [out.astype(jnp.float32), jnp.maximum(stats.logsumexp, -9), stats.entropy]
    ramps = (jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape) for x in terms)
    return sum(jnp.sum(x * ramp) for x, ramp in zip(terms, ramps, strict=True)), (out, *stats)


def _values_and_gradients(attend):
    """Returns a compiled function from arrays to outputs, statistics and gradients by name."""
    loss = functools.partial(_loss, attend)
    both = jax.value_and_grad(loss, argnums=tuple(range(len(NAMES))), has_aux=True)

    # Compiling takes most of the time of these tests, and small arrays need no fast code.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def named(*arrays):
        (_, values), grads = both(*arrays)
        names = ("out", *attnjax.AttentionStats._fields, *NAMES)
        return dict(zip(names, (*values, *grads), strict=True))

    return named


def _assert_close(got, want, tolerance):
    assert got.keys() == want.keys()
    for name, expected in want.items():
        scale = np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected))
        np.testing.assert_allclose(
            got[name].astype(jnp.float32),
            expected.astype(jnp.float32),
            rtol=tolerance,
            atol=tolerance * max(scale, 1.0),
            err_msg=name,
        )


def test_reference_equals_loops_over_positions():
    q, k, v, w, bias, sinks = (np.asarray(x, np.float64) for x in _arrays())
    out, stats = _reference(*_arrays(), mask=attnjax.Causal())
    for b, t, n in np.ndindex(B, T, N):
        seen = min(t + 1, S)
        scores = [w[n] @ np.tanh(q[b, t, n] + k[b, s, n // G] + bias[n]) for s in range(seen)]
        total = np.exp(scores).sum() + np.exp(sinks[n])
        np.testing.assert_allclose(stats.logsumexp[b, n, t], np.log(total), rtol=1e-5)
        want = np.exp(scores) / total @ v[b, :seen, n // G]
        np.testing.assert_allclose(out[b, t, n], want, rtol=1e-5, atol=1e-6)


@pytest.mark.first(3)
@pytest.mark.parametrize("name", SETTINGS)
def test_blockwise_equals_reference(name):
    want = _values_and_gradients(functools.partial(_reference, **SETTINGS[name]))
    got = _values_and_gradients(functools.partial(_blockwise, **SETTINGS[name]))
    _assert_close(got(*_arrays()), want(*_arrays()), 2e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_dtypes(dtype):
    arrays = _arrays(dtype)
    want = _values_and_gradients(_reference)(*(x.astype(jnp.float32) for x in arrays))
    got = _values_and_gradients(_blockwise)(*arrays)
    assert got["out"].dtype == dtype and got["logsumexp"].dtype == jnp.float32
    assert all(got[name].dtype == dtype for name in NAMES)
    _assert_close(got, want, 2e-2)


def test_public_call_is_blockwise_and_optional_arguments_are_neutral():
    q, k, v, w, _, _ = _arrays()
    got = attnjax.additive_attention(q, k, v, w, mask=attnjax.Causal())
    zero, none = jnp.zeros((N, H)), jnp.full(N, -jnp.inf)
    want, _ = _reference(q, k, v, w, zero, none, mask=attnjax.Causal())
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)
    blockwise = attnjax.additive_attention(
        q, k, v, w, mask=attnjax.Causal(), implementation="blockwise"
    )
    np.testing.assert_array_equal(got, blockwise)


@pytest.mark.parametrize("attend", [_reference, _blockwise], ids=["reference", "blockwise"])
def test_masked_nan_goes_nowhere(attend):
    masked = _values_and_gradients(
        functools.partial(attend, mask=attnjax.Prefix(jnp.array([6, 0])))
    )
    clean = masked(*_arrays())
    np.testing.assert_array_equal(clean["out"][1], 0)
    np.testing.assert_array_equal(clean["logsumexp"][1], -np.inf)
    for which, spoil in itertools.product(("k", "v"), (jnp.nan, jnp.inf)):
        arrays = dict(zip(NAMES, _arrays(), strict=True))
        arrays[which] = arrays[which].at[0, 6:].set(spoil).at[1].set(spoil)
        _assert_close(masked(*arrays.values()), clean, 1e-6)


@pytest.mark.parametrize("attend", [_reference, _blockwise], ids=["reference", "blockwise"])
def test_nan_stays_in_its_row(attend):
    q, *rest = _arrays()
    out, stats = attend(q.at[0, 3, 1, 0].set(jnp.nan), *rest)
    bad = np.zeros((B, T, N), bool)
    bad[0, 3, 1] = True
    np.testing.assert_array_equal(np.isnan(out).all(-1), bad)
    np.testing.assert_array_equal(np.isnan(out).any(-1), bad)
    np.testing.assert_array_equal(np.isnan(stats.logsumexp), bad.swapaxes(1, 2))


@pytest.mark.first(1)
def test_forward_mode_vmap_checkpoint_and_traced_masks():
    arrays, tangents = _arrays(), tuple(jnp.cos(9 * x) for x in _arrays())

    def run(attend, lengths, *arrays):
        masked = functools.partial(attend, mask=attnjax.Prefix(lengths))
        return _loss(masked, *arrays)[0]

    lengths = jnp.array([[3, 11], [7, 1]])

    def both(attend):
        one = functools.partial(run, attend)

        def slope(lengths):
            return jax.jvp(functools.partial(jax.checkpoint(one), lengths), arrays, tangents)

        return jax.jit(jax.vmap(slope))(lengths)

    for got, want in zip(both(_blockwise), both(_reference), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5)


@pytest.mark.parametrize("axis", ["B", "T", "S", "N"])
def test_empty_axes(axis):
    size = {"B": B, "T": T, "S": S, "N": N, "K": K} | {axis: 0}
    size["K"] = 0 if axis == "N" else K
    q, k, v = (
        jnp.ones((size["B"], size[time], size[heads], width))
        for time, heads, width in (("T", "N", H), ("S", "K", H), ("S", "K", D))
    )
    w = jnp.ones((size["N"], H))
    out, stats = attnjax.additive_attention(q, k, v, w, stats=True)
    np.testing.assert_array_equal(out, np.zeros((size["B"], size["T"], size["N"], D)))
    np.testing.assert_array_equal(
        stats.logsumexp, np.full((size["B"], size["N"], size["T"]), -np.inf)
    )


def test_memory_is_linear_in_the_length():
    def temporaries(length):
        x = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
        w = jax.ShapeDtypeStruct((2, 8), jnp.float32)

        def loss(q, k, v, w):
            return jnp.sum(attnjax.additive_attention(q, k, v, w, mask=attnjax.Causal()))

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(x, x, x, w).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporaries(4096), temporaries(16384)
    assert long < 4.2 * short
    assert long < 16384 * 16384  # a quarter of one float32 array over all pairs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": jnp.ones((K, H))}, r"w: expected a float array \[N=6, H=5\], got shape \(3, 5\)"),
        ({"w": jnp.ones((N, H), int)}, r"w: .*dtype int32"),
        ({"w": 1.0}, r"w: .*got float"),
        ({"w": None}, r"w: .*got NoneType"),
        ({"bias": jnp.ones(H)}, r"bias: expected a float array \[N=6, H=5\], got shape \(5,\)"),
        ({"k": jnp.ones((B, S, K, H + 1))}, "k: expected 5, the head width H of q, got 6"),
        ({"mask": jnp.ones((T, S))}, r"mask: .*astype\(bool\)"),
        ({"implementation": "tiled"}, "one of blockwise, reference; got 'tiled'"),
        ({"dropout": 0.1}, r"dropout: expected attnjax.Dropout"),
    ],
)
def test_wrong_arguments(change, message):
    arrays = dict(zip(NAMES[:4], _arrays(), strict=False))
    with pytest.raises(ValueError, match=message):
        attnjax.additive_attention(**(arrays | change))


def test_explain_counts_blocks_and_hidden_units():
    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    call = (shape(1, 1024, 4, 8), shape(1, 1024, 2, 8), shape(1, 1024, 2, 16), shape(4, 8))
    plan = attnjax.explain_additive(*call, bias=shape(4, 8), mask=attnjax.Causal())
    assert plan.implementation == "blockwise" and plan.tiles.startswith("256 queries by 256 keys")
    assert plan.cost.blocks == (10, 6, 16)
    assert plan.cost.flops_forward == 10 * 256 * 256 * 4 * (4 * 8 + 2 * 16)
    reference = attnjax.explain_additive(*call, implementation="reference")
    assert reference.cost.blocks == (16, 0, 16) and reference.tiles == ""
    assert reference.cost.temporaries_forward > 20 * plan.cost.temporaries_forward
    assert reference.reasons == {"blockwise": "implementation='reference' was asked for"}
    empty = attnjax.explain_additive(shape(1, 0, 4, 8), *call[1:], score_mod=lambda s, *_: s)
    assert empty.cost.flops_forward == 0
    assert "a function of yours" in empty.notes[0] and "an axis is empty" in empty.notes[1]
    with pytest.raises(ValueError, match=r"w: expected a float array \[N=4, H=8\]"):
        attnjax.explain_additive(*call[:3], shape(4, 9))
    with pytest.raises(ValueError, match="implementation: expected None or one of blockwise"):
        attnjax.explain_additive(*call, implementation="fast")
