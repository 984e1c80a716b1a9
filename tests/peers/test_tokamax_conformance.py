"""Tokamax's conformance suite, `AttentionTestBase` of its wheel, run against `attnjax.attention`.

Tokamax is the extra `peers`; it cannot be installed beside `train`, so `make test-all` runs this in
an environment of its own. The adapter says every Tokamax argument in attnjax's terms; an argument
that it does not know is a TypeError, never ignored. `NOT_COVERED` names each case that the contract
of attnjax does not cover, and why. The suite's other class tests Tokamax's manual partitioning,
which has no counterpart in a library whose `partition` names mesh axes.
"""

import functools
from unittest import mock

import jax.numpy as jnp
import pytest

import attnjax

pytest.importorskip("tokamax", reason="needs the extra peers: make test-all")

from tokamax._src.ops.attention import base, test_base

NOT_COVERED = {
    "test_bench": "Tokamax skips it itself ('Awaiting Bug Fixes'); its shapes are for accelerators",
    "test_dropout": "takes a T-by-S dropout mask; attnjax.Dropout draws by position from a key",
    "test_logits_dtype": "asks for 16-bit scores; attnjax computes the softmax in float32 always",
    "test_quantized_int4": "quantised arrays are not among the inputs of attnjax.attention",
    "test_quantized_int8": "quantised arrays are not among the inputs of attnjax.attention",
}
# Only newer versions of Tokamax have this class.
CAUSAL_MASK = getattr(base, "CausalMask", ())
FORWARD_ONLY = {
    "test_normalize_output": "differentiates the largest score, which AttentionStats stops",
}


def _ranges_allow(b, h, q, k, query, key):
    """Tokamax's `Mask.as_array`, elementwise. `query` and `key` hold arrays, or None."""
    q = q if query["index"] is None else query["index"]
    k = k if key["index"] is None else key["index"]
    allowed = jnp.ones((), bool)
    for position, start, end in (
        (q, key["q_start"], key["q_end"]),
        (k, query["k_start"], query["k_end"]),
    ):
        allowed &= True if start is None else position >= start
        allowed &= True if end is None else position < end
    return allowed


def _causal_allows(b, h, q, k, query, key):
    q = q if query["index"] is None else query["index"]
    k = k if key["index"] is None else key["index"]
    return q >= k


def _per_position(x):
    """`[#B, #N, T]` for an array that broadcasts to it."""
    return None if x is None else x.reshape((1,) * (3 - x.ndim) + x.shape)


def _to_mask(mask, is_causal, q_indices, k_indices):
    """Returns the attnjax mask for Tokamax's mask arguments."""
    if isinstance(mask, CAUSAL_MASK) and not is_causal and q_indices is k_indices is None:
        left = None if mask.window_size is None else mask.window_size - 1 - mask.offset
        return attnjax.Causal(mask.offset) & attnjax.Window(left, None)
    if not isinstance(mask, base.Mask):
        mask = base.Mask(mask)
    parts = [] if mask.bool_mask is None else [attnjax.Dense(mask.bool_mask)]
    query = {"index": q_indices, "k_start": mask.k_start, "k_end": mask.k_end}
    key = {"index": k_indices, "q_start": mask.q_start, "q_end": mask.q_end}
    query, key = ({n: _per_position(x) for n, x in side.items()} for side in (query, key))
    if any(x is not None for x in (mask.k_start, mask.k_end, mask.q_start, mask.q_end)):
        parts.append(attnjax.Where(_ranges_allow, per_query=query, per_key=key))
    if is_causal or mask.is_causal:
        permuted = q_indices is not None or k_indices is not None
        parts.append(
            attnjax.Where(_causal_allows, per_query=query, per_key=key)
            if permuted
            else attnjax.Causal()
        )
    return functools.reduce(lambda a, b: a & b, parts) if parts else None


def _attend(
    q,
    k,
    v,
    *,
    implementation,
    precision=None,
    bias=None,
    logits_scale=None,
    logits_soft_cap=None,
    mask=None,
    is_causal=False,
    q_indices=None,
    k_indices=None,
    normalize_output=True,
    return_residuals=False,
):
    """`attnjax.attention` with the arguments of Tokamax's `DotProductAttention`."""
    batch = q.shape[:-3]

    def fold(x):  # every batch axis into one
        return x.reshape(-1, *x.shape[-3:])

    def fold_broadcast(x):  # the same for an array that may lack batch axes
        if x is None or (len(batch) <= 1 and x.ndim <= 4):
            return x
        return fold(jnp.broadcast_to(x, (*batch, *x.shape[-3:])))

    if hasattr(mask, "shape"):
        mask = fold_broadcast(mask)
    # Tokamax caps the scores after it adds the bias.
    score_mods = () if bias is None else (attnjax.bias(fold_broadcast(bias)),)
    score_mods += () if logits_soft_cap is None else (attnjax.soft_cap(logits_soft_cap),)
    with_stats = return_residuals or not normalize_output
    result = attnjax.attention(
        *(fold(x) for x in (q, k, v)),
        mask=_to_mask(mask, is_causal, q_indices, k_indices),
        score_mod=score_mods or None,
        scale=logits_scale,
        precision=precision,
        stats=with_stats,
        implementation=implementation,
    )
    if not with_stats:
        return result.reshape(*batch, *result.shape[1:])
    out, stats = result
    denominator = jnp.exp(stats.logsumexp - stats.max_logit)  # [B, N, T]
    if not normalize_output:
        out = out * jnp.swapaxes(denominator, 1, 2)[..., None]
    out = out.reshape(*batch, *out.shape[1:])
    if not return_residuals:
        return out
    return out, tuple(x.reshape(*batch, *x.shape[1:]) for x in (stats.max_logit, denominator))


class _AttnjaxConformance:
    """The suite with the adapter; a subclass names the implementation."""

    implementation: str

    def __init__(self, *args):
        attend = functools.partial(_attend, implementation=self.implementation)
        super().__init__(*args, attention_fn=attend)

    def setUp(self):
        for name, reason in NOT_COVERED.items():
            if self._testMethodName.startswith(name):
                self.skipTest(reason)
        super().setUp()

    def _run_test_with_inputs(self, *args, **kwargs):
        if self._testMethodName in FORWARD_ONLY:
            kwargs["test_vjp"] = False
        super()._run_test_with_inputs(*args, **kwargs)

    def _test_vmap(self, vmap_in_axes):
        # Tokamax skips it as too slow; vmap over any argument is part of our contract.
        with mock.patch.object(self, "skipTest"):
            super()._test_vmap(vmap_in_axes)

    def _test_invalid_shapes(self, **kwargs):
        # Tokamax takes any exception, and skips it as too slow; ours has to name the argument.
        with self.assertRaisesRegex(ValueError, "^(bias|mask)"):
            self._run_test(**kwargs)


class TestReference(_AttnjaxConformance, test_base.AttentionTestBase):
    implementation = "reference"


class TestBlockwise(_AttnjaxConformance, test_base.AttentionTestBase):
    implementation = "blockwise"


def test_tables_name_cases_of_the_suite():
    cases = [name for name in dir(test_base.AttentionTestBase) if name.startswith("test_")]
    for name in (*NOT_COVERED, *FORWARD_ONLY):
        assert any(case.startswith(name) for case in cases), f"Tokamax has no {name} any more"
