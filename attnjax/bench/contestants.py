"""Who is measured: our implementations and every peer, each with the reason where it is absent."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import attnjax
from attnjax.bench import torch_contestants
from attnjax.bench.cases import Work, directed, named
from attnjax.bench.prepared import Prepared
from attnjax.ops.softmax.dispatch import IMPLEMENTATIONS

Attend = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    Attributes:
      name: what it is called in reports.
      absent: why it can't take part on a platform, or None if it can.
      prepare: compiles a direction of a case; raises NotImplementedError where it can't do it.
    """

    name: str
    absent: Callable[[str], str | None]
    prepare: Callable[[Work, str], Prepared]


def of_jax(
    make: Callable[[Work], Attend],
    extras: Callable[[Work], Mapping[str, Any]] = lambda work: work.extras,
    heads_first: bool = False,
) -> Callable[[Work, str], Prepared]:
    """Returns what prepares a function of JAX.

    Args:
      make: returns `attend(q, k, v, extras)` for a case.
      extras: the arrays that it wants besides.
      heads_first: whether its arrays are `[B, N, T, H]`.
    """

    def prepare(work: Work, direction: str) -> Prepared:
        attend = make(work)
        arrays = [*work.inputs, work.cotangent]
        if heads_first:
            arrays = [jnp.moveaxis(x, 2, 1) for x in arrays]
        arguments = (*arrays, dict(extras(work)))
        compiled = jax.jit(directed(attend, direction)).lower(*arguments).compile()
        analysis: Any = compiled.memory_analysis()

        def results() -> dict[str, np.ndarray]:
            outputs = compiled(*arguments)
            if heads_first:
                outputs = tuple(jnp.moveaxis(x, 1, 2) for x in outputs)
            return named(outputs)

        return Prepared(
            run=lambda: compiled(*arguments),
            wait=jax.block_until_ready,
            results=results,
            temporaries=None if analysis is None else analysis.temp_size_in_bytes,
            note=getattr(attend, "note", ""),
        )

    return prepare


@dataclasses.dataclass(frozen=True)
class _Ours:
    """Our attention as `attend(q, k, v, extras)`."""

    work: Work
    implementation: str | None
    stats: bool
    note: str

    def __call__(self, q: Any, k: Any, v: Any, extras: Mapping[str, Any]) -> Any:
        return attnjax.attention(
            q,
            k,
            v,
            mask=self.work.mask(extras),
            score_mod=self.work.score_mod(extras),
            stats=self.stats,
            implementation=self.implementation,
        )


def _ours(implementation: str | None, stats: bool = False) -> Callable[[Work], Attend]:
    def make(work: Work) -> Attend:
        chosen = attnjax.explain(
            *work.inputs,
            mask=work.mask(work.extras),
            score_mod=work.score_mod(work.extras),
            stats=stats,
        ).implementation
        if implementation == chosen:
            raise NotImplementedError("is what attnjax chooses by itself; see there")
        ours = _Ours(work, implementation, stats, implementation or chosen)
        return _Summed(ours) if stats else ours

    return make


@dataclasses.dataclass(frozen=True)
class _Summed:
    """Our attention with statistics; they are computed, though only the output is returned."""

    ours: _Ours

    @property
    def note(self) -> str:
        return self.ours.note

    def __call__(self, q: Any, k: Any, v: Any, extras: Mapping[str, Any]) -> Any:
        out, statistics = self.ours(q, k, v, extras)
        # Else the compiler would leave out what nobody reads.
        kept = jax.lax.optimization_barrier((out, *jax.tree.leaves(statistics)))
        return kept[0]


def _jax_nn(implementation: str) -> Callable[[Work], Attend]:
    def make(work: Work) -> Attend:
        if work.soft_cap is not None:
            raise NotImplementedError("jax.nn knows no soft cap")
        options: dict[str, Any] = {"implementation": implementation}
        if work.window is not None:
            options["local_window_size"] = (work.window, 0)

        def attend(q: Any, k: Any, v: Any, extras: Mapping[str, Any]) -> Any:
            masked: dict[str, Any] = {"is_causal": True}
            if "dense" in extras:
                masked = {"mask": extras["dense"]}
            return jax.nn.dot_product_attention(
                q, k, v, bias=extras.get("bias"), **masked, **options
            )

        return attend

    return make


def _tokamax(work: Work) -> Attend:
    import tokamax

    window = None if work.window is None else (work.window, 0)

    def attend(q: Any, k: Any, v: Any, extras: Mapping[str, Any]) -> Any:
        masked = {"mask": extras["dense"]} if "dense" in extras else {"is_causal": True}
        return tokamax.dot_product_attention(
            q,
            k,
            v,
            extras.get("bias"),
            local_window_size=window,
            logits_soft_cap=work.soft_cap,
            **masked,
        )

    return attend


def _flax(work: Work) -> Attend:
    from flax import nnx

    if work.soft_cap is not None:
        raise NotImplementedError("Flax knows no soft cap")

    def attend(q: Any, k: Any, v: Any, extras: Mapping[str, Any]) -> Any:
        return nnx.dot_product_attention(q, k, v, bias=extras.get("bias"), mask=extras["dense"])

    return attend


def _flash(work: Work) -> Attend:
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


def _splash(work: Work) -> Attend:
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


def _dense_where_needed(work: Work) -> dict[str, Any]:
    """Returns the arrays for those who know `is_causal` and windows but no other mask."""
    wanted = work.prefix or "ids" in work.extras
    dense = {"dense": work.dense} if wanted else {}
    return {**dense, **{n: x for n, x in work.extras.items() if n == "bias"}}


def _dense_always(work: Work) -> dict[str, Any]:
    return {"dense": work.dense, **{n: x for n, x in work.extras.items() if n == "bias"}}


def _needs(package: str | None, *platforms: str) -> Callable[[str], str | None]:
    """Returns what says why a package can't take part on a platform."""

    def absent(platform: str) -> str | None:
        if package is not None and importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
        if platforms and platform not in platforms:
            return f"needs {' or '.join(platforms)}; this is {platform}"
        return None

    return absent


def roster() -> list[Contestant]:
    """Returns all contestants; the first one is what the others are compared with."""
    everywhere = _needs(None)
    named_ours = [
        Contestant(
            f"attnjax {name}",
            _needs(None, *{"tpu": ["tpu"], "gpu": ["gpu"], "cudnn": ["gpu"]}.get(name, [])),
            of_jax(_ours(name)),
        )
        for name, implementation in IMPLEMENTATIONS.items()
        if implementation.preferred
    ]
    return [
        Contestant("attnjax", everywhere, of_jax(_ours(None))),
        Contestant("attnjax stats", everywhere, of_jax(_ours(None, stats=True))),
        Contestant(
            "jax.nn cudnn", _needs(None, "gpu"), of_jax(_jax_nn("cudnn"), _dense_where_needed)
        ),
        Contestant("splash", _needs(None, "tpu"), of_jax(_splash, heads_first=True)),
        Contestant("flash_attention", _needs(None, "tpu"), of_jax(_flash, heads_first=True)),
        Contestant("torch SDPA", _needs("torch", "cpu", "gpu"), torch_contestants.sdpa),
        Contestant("tokamax", _needs("tokamax"), of_jax(_tokamax, _dense_where_needed)),
        *named_ours,
        Contestant("jax.nn xla", everywhere, of_jax(_jax_nn("xla"), _dense_where_needed)),
        Contestant("flax", everywhere, of_jax(_flax, _dense_always)),
        Contestant("torch flex", _needs("torch", "cpu", "gpu"), torch_contestants.flex),
    ]
