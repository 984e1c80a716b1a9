"""Under `jax_enable_x64`, where Python's numbers and loop counters have 64 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from attnjax import Causal, Prefix, Window

B, T, S, N, K, H = 2, 23, 29, 4, 2, 5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_and_gradients(dtype):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        q, k, v = (
            jnp.asarray(rng.standard_normal(shape), dtype)
            for shape in ((B, T, N, H), (B, S, K, H), (B, S, K, H))
        )
        sinks, key = jnp.arange(N, dtype=dtype), jax.random.key(0)

        def call(implementation, q, k, v, sinks):
            return attnjax.attention(
                q,
                k,
                v,
                mask=(Causal(offset=6) & Window(9, 2)) | Prefix(jnp.array([3, 0])),
                score_mod=(attnjax.alibi(N), attnjax.soft_cap(30.0)),
                sinks=sinks,
                dropout=attnjax.Dropout(0.3, key),
                stats=True,
                implementation=implementation,
            )

        def loss(implementation, *arrays):
            out, stats = call(implementation, *arrays)
            return jnp.sum(out**2) + jnp.sum(stats.entropy)

        tolerance = 2e-5 if dtype == "float32" else 1e-12
        found, wanted = (call(name, q, k, v, sinks) for name in ("blockwise", "reference"))
        assert found[0].dtype == dtype
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=max(tolerance, 1e-6), atol=1e-6),
            found,
            wanted,
        )
        grads = [
            jax.grad(loss, argnums=(1, 2, 3, 4))(name, q, k, v, sinks)
            for name in ("blockwise", "reference")
        ]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), *grads
        )


def test_additive_attention_and_decoding():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        q, k = (jnp.asarray(rng.standard_normal((B, n, N, H))) for n in (T, S))
        w = jnp.asarray(rng.standard_normal((N, H)))
        outs = [
            attnjax.additive_attention(q, k, k, w, mask=Causal(), implementation=name)
            for name in ("blockwise", "reference")
        ]
        np.testing.assert_allclose(*outs, atol=1e-12)
        last = attnjax.decode(q[:, -1:], k, k, length=S - 3)
        full = attnjax.attention(q[:, -1:], k[:, :-3], k[:, :-3])
        np.testing.assert_allclose(last, full, atol=1e-12)
