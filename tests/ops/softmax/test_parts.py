"""Parts of a call, which know their place in it, add up to the call: values and derivatives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from attnjax import Causal, Prefix, Segments, Where, Window
from attnjax.ops.softmax import blockwise, gpu, reference, tpu, vendor
from attnjax.ops.softmax.problem import Known
from attnjax.ops.softmax.stats import AttentionStats
from attnjax.validate import make_problem

B, T, N, K, H, D = 1, 384, 2, 1, 3, 5
QUERIES, KEYS = 192, 128  # of a part; neither are blocks of 128 whole in the first
RUNS = {
    "blockwise": lambda problem: blockwise.attend(problem, block_q=80, block_k=72),
    "reference": reference.attend,
    "tpu": lambda problem: tpu.attend(problem, block_q=128, block_k=128),
}
_BY_HEAD, _BY_QUERY = jnp.array([0.5, -1.0]), jnp.linspace(-1.0, 1.0, T)
IDS = jnp.arange(T) // 150
MASKS = {
    "causal": Causal(),
    "window | prefix": Window(40, 3) | Prefix(7),
    "segments": Segments(IDS) & Causal(),
    "where": Where(lambda b, h, q, k: (q + 2 * k + h) % 3 != 0),
}
MODS = {
    "none": None,
    "alibi": attnjax.alibi(N),
    "lookups": lambda s, b, h, q, k: s * _BY_HEAD[h] + _BY_QUERY[q],
}


def _problem(q, k, v, mask, mod, *, stats, dropout, sinks=None):
    return make_problem(
        q,
        k,
        v,
        mask=mask,
        score_mod=mod,
        scale=None,
        sinks=sinks,
        dropout=attnjax.Dropout(0.3, jax.random.key(3)) if dropout else None,
        precision=None,
        stats=stats,
    )


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("implementation", "mask", "mod", "stats", "dropout"),
    [
        ("blockwise", "causal", "alibi", True, True),
        ("blockwise", "segments", "none", False, False),
        ("blockwise", "where", "lookups", True, False),
        ("reference", "window | prefix", "alibi", True, True),
        ("tpu", "segments", "lookups", True, False),
        ("tpu", "window | prefix", "none", True, True),
        ("tpu", "where", "alibi", False, False),
    ],
)
def test_parts_add_up(implementation, mask, mod, stats, dropout):
    chosen, run = MASKS[mask], RUNS[implementation]
    q, k, v, d_out = (
        jax.random.normal(jax.random.key(n), (B, T, *shape))
        for n, shape in enumerate([(N, H), (K, H), (K, D), (N, D)])
    )
    slopes = jax.random.normal(jax.random.key(9), (2, B, N, T))
    zero = jnp.zeros((B, N, T))

    def cotangents(rows):
        entropy = slopes[1] if stats else zero
        found = AttentionStats(slopes[0], zero, entropy, zero, zero)
        return d_out[:, rows], AttentionStats(*(x[:, :, rows] for x in found))

    def whole(q, k, v):
        # A part tells its logsumexp without being asked for statistics; so does this one.
        problem = _problem(q, k, v, chosen, MODS[mod], stats=stats, dropout=dropout)
        return run(dataclasses.replace(problem, origin=jnp.zeros(4, jnp.int32)))

    @jax.jit
    def part(q, k, v, ids, origin, known):
        cut = Segments(*ids) & Causal() if mask == "segments" else chosen
        problem = _problem(q, k, v, cut, MODS[mod], stats=stats, dropout=dropout)
        return run(dataclasses.replace(problem, origin=origin, known=known))

    @jax.jit
    def pull_part(q, k, v, ids, origin, known, towards):
        return jax.vjp(lambda *x: part(*x, ids, origin, known), q, k, v)[1](towards)

    with attnjax.emulate("tpu"):
        (out, found), pull = jax.vjp(jax.jit(whole), q, k, v)
        want = pull(cotangents(slice(None))) if implementation != "reference" else None
        totals = [jnp.zeros_like(x) for x in (q, k, v)]
        for first in range(0, T, QUERIES):
            rows = slice(first, first + QUERIES)
            here = AttentionStats(*(x[:, :, rows] for x in found))
            known = Known(out[:, rows], here.logsumexp, here.entropy if stats else None)
            sums = [0.0] * 4
            highest = jnp.full_like(here.max_logit, -jnp.inf)
            for start in range(0, T, KEYS):
                columns = slice(start, start + KEYS)
                given = q[:, rows], k[:, columns], v[:, columns]
                ids, origin = (IDS[rows], IDS[columns]), jnp.array([0, 0, first, start])
                some, of = part(*given, ids, origin, None)
                share = jnp.exp(of.logsumexp - here.logsumexp)
                surprise = jnp.where(share > 0, here.logsumexp - of.logsumexp, 0)
                terms = (
                    jnp.swapaxes(share, 1, 2)[..., None] * some,
                    share * (of.entropy + surprise),
                    share * of.sink_mass,
                    share * of.distance,
                )
                sums = [x + y for x, y in zip(sums, terms, strict=True)]
                highest = jnp.maximum(highest, of.max_logit)
                if want is None:
                    continue
                grads = pull_part(*given, ids, origin, known, cotangents(rows))
                places = (rows, columns, columns)
                totals = [
                    x.at[:, at].add(g) for x, at, g in zip(totals, places, grads, strict=True)
                ]
            np.testing.assert_allclose(sums[0], out[:, rows], atol=2e-5)
            if stats:
                other = (here.entropy, here.sink_mass, here.distance, here.max_logit)
                for got, right in zip((*sums[1:], highest), other, strict=True):
                    np.testing.assert_allclose(got, right, rtol=2e-5, atol=5e-5)
    if want is not None:
        for got, right in zip(totals, want, strict=True):
            np.testing.assert_allclose(got, right, rtol=5e-5, atol=5e-5)


def test_kernels_that_know_no_place_refuse():
    q = jnp.zeros((1, 128, 2, 64), jnp.bfloat16)
    place = jnp.zeros(4, jnp.int32)
    with attnjax.emulate("gpu", interpret=False):
        for kernels, stats in ((gpu, True), (vendor, False)):
            problem = _problem(q, q, q, Causal(), None, stats=stats, dropout=False)
            kernels.check(problem)
            with pytest.raises(NotImplementedError, match="part of a sharded call"):
                kernels.check(dataclasses.replace(problem, origin=place))
