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
from attnjax.bench import torch_contestants, tpu_contestants
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
    from absl import flags

    # Else it reads its options from this command's line, and stops at those it does not know.
    flags.FLAGS.mark_as_parsed()
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
    """Returns all contestants; `attnjax` is what the others are compared with."""
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
        Contestant("splash", _needs(None, "tpu"), of_jax(tpu_contestants.splash, heads_first=True)),
        Contestant(
            "flash_attention", _needs(None, "tpu"), of_jax(tpu_contestants.flash, heads_first=True)
        ),
        Contestant("torch SDPA", _needs("torch", "cpu", "gpu"), torch_contestants.sdpa),
        Contestant("tokamax", _needs("tokamax"), of_jax(_tokamax, _dense_where_needed)),
        *named_ours,
        Contestant("jax.nn xla", everywhere, of_jax(_jax_nn("xla"), _dense_where_needed)),
        Contestant("flax", everywhere, of_jax(_flax, _dense_always)),
        Contestant("torch flex", _needs("torch", "cpu", "gpu"), torch_contestants.flex),
    ]
