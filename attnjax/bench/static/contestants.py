"""The attention kernels that are profiled without a TPU: ours and those that come with JAX."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import attnjax
from attnjax.bench.static.tpu import Job, Kernel, Profile, profile

CASES = ("causal", "full", "window", "documents")
DIRECTIONS = ("fwd", "fwdbwd")
WINDOW = 1023
DOCUMENTS = 16
_SIZES = ((512, 512), (512, 1024), (1024, 1024), (1024, 2048), (2048, 2048))
Made = tuple[Callable[..., Any], tuple[Any, ...]]


def ours(
    *,
    case: str,
    direction: str,
    length: int,
    heads: int,
    width: int,
    stats: bool = False,
    implementation: str = "tpu",
) -> Made:
    """Returns our attention and its arguments, bfloat16, `[1, T, N, H]`."""
    masks: dict[str, attnjax.Mask] = {
        "causal": attnjax.Causal(),
        "full": attnjax.Full(),
        "window": attnjax.Causal() & attnjax.Window(WINDOW, 0),
        "documents": attnjax.Causal() & attnjax.Segments(_documents(length)),
    }

    def attend(q: Any, k: Any, v: Any) -> Any:
        with attnjax.emulate("tpu", interpret=False):
            return attnjax.attention(
                q, k, v, mask=masks[case], stats=stats, implementation=implementation
            )

    shape = jax.ShapeDtypeStruct((1, length, heads, width), jnp.bfloat16)
    return _directed(attend, shape, direction)


def flash(
    *, case: str, direction: str, length: int, heads: int, width: int, block_q: int, block_k: int
) -> Made:
    """Returns JAX's `flash_attention` for TPUs and its arguments; it knows no windows."""
    from jax.experimental.pallas.ops.tpu import flash_attention as library

    if case == "window":
        raise NotImplementedError("flash_attention has no windows.")
    sizes = library.BlockSizes(
        block_q=block_q,
        block_k_major=block_k,
        block_k=block_k,
        block_b=1,
        block_q_major_dkv=block_q,
        block_k_major_dkv=block_k,
        block_k_dkv=block_k,
        block_q_dkv=block_q,
        block_k_major_dq=block_k,
        block_k_dq=block_k,
        block_q_dq=block_q,
    )
    ids = _documents(length)
    segments = library.SegmentIds(ids, ids) if case == "documents" else None

    def attend(q: Any, k: Any, v: Any) -> Any:
        return library.flash_attention(
            q,
            k,
            v,
            segment_ids=segments,
            causal=case != "full",
            sm_scale=width**-0.5,
            block_sizes=sizes,
        )

    shape = jax.ShapeDtypeStruct((1, heads, length, width), jnp.bfloat16)
    return _directed(attend, shape, direction)


def splash(
    *,
    case: str,
    direction: str,
    length: int,
    heads: int,
    width: int,
    block_q: int,
    block_k: int,
    compute: int,
    fused: bool,
) -> Made:
    """Returns JAX's `splash_attention` and its arguments. It does not scale scores."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as library,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    square = (length, length)
    one = {
        "causal": masks.CausalMask(square),
        "full": masks.FullMask(square),
        "window": masks.LocalMask(square, (WINDOW, 0), 0),
        "documents": masks.CausalMask(square),
    }[case]
    sizes = library.BlockSizes(
        block_q=block_q,
        block_kv=block_k,
        block_kv_compute=compute,
        block_q_dkv=block_q,
        block_kv_dkv=block_k,
        block_kv_dkv_compute=compute,
        block_q_dq=None if fused else block_q,
        block_kv_dq=None if fused else block_k,
        use_fused_bwd_kernel=fused,
    )
    kernel = library.make_splash_mha(
        masks.MultiHeadMask([one] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=1
    )
    ids = _documents(length)[0]
    segments = library.SegmentIds(ids, ids) if case == "documents" else None

    def attend(q: Any, k: Any, v: Any) -> Any:
        return kernel(q, k, v, segments)

    shape = jax.ShapeDtypeStruct((heads, length, width), jnp.bfloat16)
    return _directed(attend, shape, direction)


MAKERS = {"ours": ours, "flash": flash, "splash": splash}


def best(
    peer: str,
    target: str,
    *,
    case: str,
    direction: str,
    length: int,
    heads: int,
    width: int,
    stats: bool = False,
    blocks: str | None = None,
    keep: str | None = None,
) -> tuple[list[tuple[dict[str, Any], Kernel]], list[Profile]]:
    """Profiles a contestant at all sensible block sizes.

    Ours runs at the sizes that it chooses itself. Block sizes of forward and backward kernels are
    independent of each other, so each peer gets the best of each of its kernels.

    Returns:
      The fewest cycles: the kernels, each with its options; empty where nothing compiled. And all
      that was tried.
    """
    shared = dict(case=case, direction=direction, length=length, heads=heads, width=width)
    if peer == "ours":
        sweep: list[dict[str, Any]] = [{"stats": stats}]
    else:
        sweep = _sweep(peer, direction, length)
        if blocks is not None:
            block_q, block_k = map(int, blocks.split("x"))
            sweep = [x for x in sweep if (x["block_q"], x["block_k"]) == (block_q, block_k)]
    jobs = [Job(f"{__name__}:{peer}", {**shared, **options}) for options in sweep]
    tried = profile(jobs, target, keep=keep)
    kinds: dict[bool, dict[str, tuple[dict[str, Any], Kernel]]] = {}
    for options, found in zip(sweep, tried, strict=True):
        chosen = kinds.setdefault(bool(options.get("fused")), {})
        for k, kernel in enumerate(found.kernels):
            role = kernel.name.split("_block_")[0] if peer != "ours" else str(k)
            if role not in chosen or kernel.cycles < chosen[role][1].cycles:
                chosen[role] = options, kernel
    complete = [list(chosen.values()) for chosen in kinds.values() if chosen]
    fewest = min(complete, key=lambda x: sum(kernel.cycles for _, kernel in x), default=[])
    return fewest, tried


def _sweep(peer: str, direction: str, length: int) -> list[dict[str, Any]]:
    """Returns block sizes of a peer: those that were ever the best, and near them.

    Backward kernels of 2048x2048 take minutes to compile and were never more than 0.5% better than
    others; they are tried only along with a forward kernel of splash that is.
    """
    forward = direction == "fwd"
    pairs = _SIZES if forward or peer == "splash" else _SIZES[:-1]
    sizes = dict.fromkeys((min(q, length), min(k, length)) for q, k in pairs)
    if peer == "flash":
        return [{"block_q": q, "block_k": k} for q, k in sizes]
    found = []
    for (q, k), fused in itertools.product(sizes, (False,) if forward else (False, True)):
        slow = not forward and (q, k) == _SIZES[-1]
        if slow and not fused:
            continue
        for compute in dict.fromkeys(min(x, k) for x in (256, 512, *([] if slow else [k]))):
            found.append({"block_q": q, "block_k": k, "compute": compute, "fused": fused})
    return found


def _documents(length: int) -> jax.Array:
    """Returns the numbers of equally long documents, `[1, T]`."""
    return (jnp.arange(length, dtype=jnp.int32) * DOCUMENTS // length)[None]


def _directed(attend: Callable[..., Any], shape: Any, direction: str) -> Made:
    if direction == "fwd":
        return attend, (shape,) * 3

    def both(q: Any, k: Any, v: Any, cotangent: Any) -> Any:
        out, back = jax.vjp(lambda *qkv: _with_aux(attend(*qkv)), q, k, v)
        return out, back((cotangent, jax.tree.map(jnp.zeros_like, out[1])))

    return both, (shape,) * 4


def _with_aux(result: Any) -> tuple[Any, Any]:
    return result if isinstance(result, tuple) else (result, None)
