"""The attention kernels for TPUs that come with JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.bench.cases import Work


def flash(work: Work) -> Callable[..., Any]:
    """Returns `flash_attention` on `[B, N, T, H]`."""
    from jax.experimental.pallas.ops.tpu import flash_attention as library

    if work.window is not None or work.prefix or work.soft_cap is not None:
        raise NotImplementedError("flash_attention knows neither windows, prefixes nor soft caps")
    block = min(1024, work.shape.T)
    names = [x.name for x in dataclasses.fields(library.BlockSizes) if x.name != "block_b"]
    sizes = library.BlockSizes(block_b=1, **dict.fromkeys(names, block))

    def attend(q: Any, k: Any, v: Any, extras: Mapping[str, Any]) -> Any:
        ids = extras.get("ids")
        segments = None if ids is None else library.SegmentIds(ids, ids)
        bias = extras.get("bias")
        if bias is not None:
            bias = jnp.broadcast_to(bias, (*q.shape[:2], *bias.shape[2:]))
        scale = q.shape[-1] ** -0.5
        return library.flash_attention(
            q, k, v, bias, segments, causal=True, sm_scale=scale, block_sizes=sizes
        )

    return attend


def splash(work: Work) -> Callable[..., Any]:
    """Returns `splash_attention` on `[B, N, T, H]`, with queries scaled beforehand."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as library,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    if "bias" in work.extras:
        raise NotImplementedError("splash_attention knows no bias")
    T = work.shape.T
    mask: Any = masks.CausalMask((T, T))
    if work.prefix:
        mask = masks.NumpyMask(np.asarray(work.dense)[0, 0])
    elif work.window is not None:
        mask = masks.LocalMask((T, T), (work.window, 0), 0)
    block, inner = min(1024, T), min(512, T)
    sizes = library.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=inner,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )
    kernel = library.make_splash_mha(
        masks.MultiHeadMask([mask] * work.shape.N),
        block_sizes=sizes,
        attn_logits_soft_cap=work.soft_cap,
        head_shards=1,
        q_seq_shards=1,
    )

    def attend(q: Any, k: Any, v: Any, extras: Mapping[str, Any]) -> Any:
        scaled = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
        ids = extras.get("ids")
        if ids is None:
            return jax.vmap(lambda *qkv: kernel(*qkv))(scaled, k, v)
        return jax.vmap(lambda q, k, v, i: kernel(q, k, v, library.SegmentIds(i, i)))(
            scaled, k, v, ids
        )

    return attend
