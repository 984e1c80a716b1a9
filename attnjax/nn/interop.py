"""`attention_fn`: attnjax in the place of Flax's own attention function."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

from attnjax.api import attention
from attnjax.dropout import Dropout
from attnjax.masks import Causal, Mask, as_mask
from attnjax.scores import bias as add_bias


def attention_fn(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    mask: Mask | Array | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: PRNGKeyArray | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Any = None,
    precision: Any = None,
    module: Any = None,
    force_fp32_for_softmax: bool = False,
    einsum_dot_general: None = None,
    qk_attn_weights_einsum: None = None,
    attn_weights_value_einsum: None = None,
    promote_dtype: Callable[..., tuple[Array, ...]] = nnx.nn.dtypes.promote_dtype,
    is_causal: bool = False,
    input_positions: None = None,
) -> Array:
    """Computes `attnjax.attention` under the conventions of Flax's `dot_product_attention`.

    Pass it as `attention_fn` to `flax.nnx.MultiHeadAttention` or to
    `flax.linen.MultiHeadDotProductAttention`; the arguments are those of both, in their order. It
    differs from Flax where attnjax does: a query whose keys are all masked gives 0, not the mean of
    the values; NaN in a masked key or value goes nowhere; the softmax is in float32 whatever the
    dtype; float32 is multiplied in full float32 unless `precision` says otherwise; the dropout
    pattern of a key is attnjax's own.

    Args:
      query: `[..., T, N, H]`, with any number of batch dimensions.
      key: `[..., S, K, H]`; N is a multiple of K.
      value: `[..., S, K, D]`.
      bias: float, added to the scores; broadcastable to `[..., N, T, S]`.
      mask: of any dtype, broadcastable to `[..., N, T, S]`: nonzero = attend, as the arrays of
        Flax's `make_*_mask` mean it. Or an `attnjax.Mask`, whose batch index counts the batch
        dimensions flattened.
      broadcast_dropout: drop the same weights in every head of every batch element.
      dropout_rng: key of the dropout pattern.
      dropout_rate: probability of dropping a weight.
      deterministic: no dropout.
      dtype: dtype of the computation; None promotes the inputs' dtypes.
      precision: precision of the products.
      module: must be None; see below.
      force_fp32_for_softmax: return float32 for narrower inputs, as Flax then does; the softmax is
        in float32 in any case.
      einsum_dot_general: must be None; see below.
      qk_attn_weights_einsum: must be None; see below.
      attn_weights_value_einsum: must be None; see below.
      promote_dtype: brings query, key and value to one dtype.
      is_causal: a query sees the keys up to its own position, besides what `mask` says.
      input_positions: must be None; see below.

    Returns:
      The output `[..., T, N, D]`.

    Raises:
      ValueError: if shapes don't fit, or dropout is active without `dropout_rng`.
      NotImplementedError: if the weights are to be sown (`module`), products are to be computed by
        another function, or positions are to be rotated.
    """
    _refuse(
        module=module,
        einsum_dot_general=einsum_dot_general,
        qk_attn_weights_einsum=qk_attn_weights_einsum,
        attn_weights_value_einsum=attn_weights_value_einsum,
        input_positions=input_positions,
    )
    query, key, value = promote_dtype((query, key, value), dtype=dtype)
    batch = _batch_shape(query, key, value)
    scores_shape = (*batch, query.shape[-2], query.shape[-3], key.shape[-3])

    masks = []
    if isinstance(mask, Mask):
        masks.append(mask)
    elif mask is not None:
        masks.append(as_mask(_flatten_batch("mask", jnp.asarray(mask) != 0, scores_shape)))
    if is_causal:
        masks.append(Causal())
    if len(masks) == 2:
        masks = [masks[0] & masks[1]]

    dropout = None
    if not deterministic and dropout_rate > 0:
        if dropout_rng is None:
            raise ValueError(
                "dropout_rng: expected a PRNG key, since deterministic=False and "
                f"dropout_rate={dropout_rate}; got None. Pass a key, or deterministic=True."
            )
        dropout = Dropout(dropout_rate, dropout_rng, shared="BN" if broadcast_dropout else "")

    out = attention(
        *(x.reshape(math.prod(batch), *x.shape[-3:]) for x in (query, key, value)),
        mask=masks[0] if masks else None,
        score_mod=None if bias is None else add_bias(_flatten_batch("bias", bias, scores_shape)),
        dropout=dropout,
        precision=precision,
    )
    if force_fp32_for_softmax and out.dtype.itemsize < 4:
        out = out.astype(jnp.float32)
    return out.reshape(*batch, *out.shape[1:])


_REMEDIES = {
    "module": (
        "sowing attention weights (sow_weights=True) needs the whole T-by-S array, which attnjax "
        "never makes; for what the heads look at call attnjax.attention(..., stats=True), or leave "
        "attention_fn at Flax's own"
    ),
    "einsum_dot_general": "attnjax computes the products itself; leave it None",
    "qk_attn_weights_einsum": "attnjax computes the products itself; leave it None",
    "attn_weights_value_einsum": "attnjax computes the products itself; leave it None",
    "input_positions": (
        "attention_fn rotates nothing; use attnjax.nn.MultiHeadAttention, which has rotary "
        "positions, or rotate query and key before"
    ),
}


def _refuse(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise NotImplementedError(
                f"{name}: expected None, got {type(value).__name__}: {_REMEDIES[name]}."
            )


def _batch_shape(query: Array, key: Array, value: Array) -> tuple[int, ...]:
    """Returns the batch dimensions, which the three must share."""
    arrays = {"query": query, "key": key, "value": value}
    for name, x in arrays.items():
        if x.ndim < 3 or x.shape[:-3] != query.shape[:-3]:
            shapes = ", ".join(f"{n} {tuple(x.shape)}" for n, x in arrays.items())
            raise ValueError(
                f"{name}: expected [..., length, heads, width] with the same batch dimensions in "
                f"query, key and value; got {shapes}."
            )
    return tuple(query.shape[:-3])


def _flatten_batch(name: str, x: Array, scores_shape: tuple[int, ...]) -> Array:
    """Turns what broadcasts to `[..., N, T, S]` into what broadcasts to `[B, N, T, S]`.

    The batch dimensions are expanded only if some, but not all, are broadcast.
    """
    try:
        fits = jnp.broadcast_shapes(x.shape, scores_shape) == scores_shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name}: expected an array broadcastable to [..., N, T, S] = {scores_shape}, "
            f"got shape {tuple(x.shape)}."
        )
    x = x.reshape((1,) * (len(scores_shape) - x.ndim) + x.shape)
    batch = scores_shape[:-3]
    if any(size != 1 for size in x.shape[:-3]):
        x = jnp.broadcast_to(x, (*batch, *x.shape[-3:]))
    return x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:])
