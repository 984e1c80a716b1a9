"""Derivatives of operations whose loops JAX cannot reverse: forward mode and reverse mode at once.

`jax.custom_vjp` refuses forward mode, and `jax.custom_jvp` needs a tangent that JAX can transpose,
which a loop with a data-dependent length is not. Here the tangent is one primitive that knows its
own transpose, so `jvp`, `vjp`, `vmap`, `jit`, `checkpoint` and forward-over-reverse all work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

Arrays = tuple[Array, ...]
Forward = Callable[[Arrays], tuple[Arrays, Arrays]]
Backward = Callable[
    [Arrays, Arrays, tuple[Array | None, ...], tuple[bool, ...]], tuple[Array | None, ...]
]


def differentiable(
    forward: Forward,
    backward: Backward,
    num_smooth: int,
    refusal: str,
    plain: Callable[[Arrays], Arrays] | None = None,
    check_plain: Callable[[tuple[bool, ...]], None] = lambda wanted: None,
) -> Callable:
    """Gives an operation its derivatives.

    Args:
      forward: `forward(args) -> (outputs, residuals)`.
      backward: `backward(args, residuals, cotangents, wanted) -> cotangents of args`. A cotangent
        of an output that nobody used is None; an argument that is not wanted may get None.
      num_smooth: how many outputs, from the first on, have a derivative; it is 0 for the others.
      refusal: what a second reverse-mode derivative says, as NotImplementedError.
      plain: `plain(args) -> outputs`, the same outputs in plain JAX, where `forward` and `backward`
        are kernels that JAX cannot differentiate: forward mode goes through it. None where they
        are plain JAX themselves.
      check_plain: `check_plain(wanted)` raises NotImplementedError where `plain` has other
        cotangents of the wanted arguments than `backward`, before their derivative is taken.

    Returns:
      `op(*args) -> outputs`. Every array that `forward` needs is an argument; no function may close
      over tracers.
    """

    @jax.custom_jvp
    def op(*args: Array) -> tuple[Arrays, Arrays]:
        return forward(args)

    def rule(
        primals: Arrays, tangents: Sequence[Array | SymbolicZero]
    ) -> tuple[tuple[Arrays, Arrays], tuple[Arrays, Arrays]]:
        # A derivative of this one meets kernels as an operation, and plain JAX as it is.
        outputs, residuals = forward(primals) if plain is None else op(*primals)
        wanted = tuple(not isinstance(t, SymbolicZero) for t in tangents)
        num_args = len(primals)
        kinds = [(x.shape, x.dtype) for x in outputs[:num_smooth]]

        def tangent(known: Arrays, moved: Arrays) -> Arrays:
            args = known[:num_args]

            def smooth(*some: Array) -> Arrays:
                every = _merge(args, wanted, some)
                outputs = forward(every)[0] if plain is None else plain(every)
                return outputs[:num_smooth]

            return jax.jvp(smooth, _pick(args, wanted), moved)[1]

        def transpose(known: Arrays, cotangents: tuple[Array | None, ...]) -> Arrays:
            args, saved = known[:num_args], known[num_args:]
            pull = None if plain is None else _plain_backward(plain, kinds, check_plain)
            return _once(backward, wanted, refusal, pull)(args, saved, cotangents)

        moved = tuple(t for t in tangents if not isinstance(t, SymbolicZero))
        smooth_out = _linear(
            tangent, transpose, (*primals, *residuals), moved, outputs[:num_smooth]
        )
        moved_outputs = (*smooth_out, *(_no_tangent(x) for x in outputs[num_smooth:]))
        # Only the rule itself reads residuals, and derivatives in plain JAX do without them.
        return (outputs, residuals), (moved_outputs, tuple(_no_tangent(x) for x in residuals))

    op.defjvp(rule, symbolic_zeros=True)
    return lambda *args: op(*args)[0]


def _no_tangent(x: Array) -> Any:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)


def _plain_backward(
    plain: Callable[[Arrays], Arrays],
    kinds: Sequence[tuple],
    check: Callable[[tuple[bool, ...]], None],
) -> Backward:
    """Returns a backward pass of `plain`, given the shapes and dtypes of its smooth outputs."""

    def backward(
        args: Arrays,
        residuals: Arrays,
        cotangents: tuple[Array | None, ...],
        wanted: tuple[bool, ...],
    ) -> tuple[Array | None, ...]:
        check(wanted)

        def smooth(*some: Array) -> Arrays:
            return plain(_merge(args, wanted, some))[: len(kinds)]

        _, pull = jax.vjp(smooth, *_pick(args, wanted))
        filled = (
            jnp.zeros(*kind) if c is None else c for c, kind in zip(cotangents, kinds, strict=True)
        )
        grads = iter(pull(tuple(filled)))
        return tuple(next(grads) if w else None for w in wanted)

    return backward


def _once(
    backward: Backward, wanted: tuple[bool, ...], refusal: str, pull: Backward | None
) -> Callable:
    """Wraps a backward pass so that forward mode goes through it and reverse mode is refused.

    Where there is a `pull`, the same in plain JAX, forward mode goes through that one.
    """

    def run(args: Arrays, residuals: Arrays, cotangents: tuple[Array | None, ...]) -> Arrays:
        present = tuple(c is not None for c in cotangents)
        sizes = (len(args), len(args) + len(residuals))

        def through(backward: Backward, *flat: Array) -> Arrays:
            given = iter(flat[sizes[1] :])
            cts = tuple(next(given) if p else None for p in present)
            grads = backward(flat[: sizes[0]], flat[sizes[0] : sizes[1]], cts, wanted)
            return tuple(g for g, w in zip(grads, wanted, strict=True) if w and g is not None)

        @jax.custom_jvp
        def once(*flat: Array) -> Arrays:
            return through(backward, *flat)

        def rule(primals: Arrays, tangents: Sequence) -> tuple[Arrays, Arrays]:
            moving = tuple(not isinstance(t, SymbolicZero) for t in tangents)
            moved = _pick(tangents, moving)
            outputs = through(backward, *primals)
            plain = functools.partial(through, pull or backward)
            return outputs, _tangent_only(plain, primals, moving, moved, outputs, refusal)

        once.defjvp(rule, symbolic_zeros=True)
        return once(*args, *residuals, *(c for c in cotangents if c is not None))

    return run


def _tangent_only(
    fun: Callable[..., Arrays],
    primals: Arrays,
    moving: tuple[bool, ...],
    moved: Arrays,
    outputs: Arrays,
    refusal: str,
) -> Arrays:
    def tangent(known: Arrays, moved: Arrays) -> Arrays:
        def some(*values: Array) -> Arrays:
            return fun(*_merge(known, moving, values))

        return jax.jvp(some, _pick(known, moving), moved)[1]

    def transpose(known: Arrays, cotangents: tuple[Array | None, ...]) -> Arrays:
        raise NotImplementedError(refusal)

    return _linear(tangent, transpose, primals, moved, outputs)


def _pick(values: Sequence, chosen: Sequence[bool]) -> tuple:
    return tuple(x for x, c in zip(values, chosen, strict=True) if c)


def _merge(values: Sequence[Array], chosen: Sequence[bool], new: Sequence[Array]) -> Arrays:
    replacements = iter(new)
    return tuple(next(replacements) if c else x for x, c in zip(values, chosen, strict=True))


_linear_p = Primitive("attnjax_linear")
_linear_p.multiple_results = True


def _linear(
    fun: Callable[[Arrays, Arrays], Arrays],
    transpose: Callable[[Arrays, tuple[Array | None, ...]], Arrays],
    residuals: Arrays,
    tangents: Arrays,
    like: Sequence[Array],
) -> Arrays:
    """Computes `fun(residuals, tangents)`, linear in its tangents, with outputs like `like`."""
    shapes = tuple((tuple(x.shape), jnp.dtype(x.dtype)) for x in like)
    return tuple(
        _linear_p.bind(
            *residuals,
            *tangents,
            fun=fun,
            transpose=transpose,
            num_residuals=len(residuals),
            shapes=shapes,
        )
    )


def _run(*args: Array, fun: Callable, num_residuals: int, **_: object) -> list[Array]:
    return list(fun(args[:num_residuals], args[num_residuals:]))


_linear_p.def_impl(_run)
mlir.register_lowering(_linear_p, mlir.lower_fun(_run, multiple_results=True))


@_linear_p.def_abstract_eval
def _abstract(*_: object, shapes: tuple, **__: object) -> list[jax.core.ShapedArray]:
    return [jax.core.ShapedArray(shape, dtype) for shape, dtype in shapes]


def _transpose_rule(
    cotangents: Sequence, *args: object, transpose: Callable, num_residuals: int, **_: object
) -> list:
    linear_args = args[num_residuals:]
    assert all(ad.is_undefined_primal(x) for x in linear_args), "tangents are all unknown"
    present = tuple(None if isinstance(c, ad.Zero) else c for c in cotangents)
    return [None] * num_residuals + list(transpose(args[:num_residuals], present))


ad.primitive_transposes[_linear_p] = _transpose_rule


def _jvp_rule(
    primals: Arrays, tangents: Sequence, *, fun: Callable, num_residuals: int, **params: object
) -> tuple[list[Array], list[Array]]:
    bind = functools.partial(_linear_p.bind, fun=fun, num_residuals=num_residuals, **params)
    outputs = bind(*primals)
    known, moved = primals[:num_residuals], tangents[num_residuals:]
    moving = tuple(not isinstance(t, ad.Zero) for t in tangents[:num_residuals])
    parts = []
    if not all(isinstance(t, ad.Zero) for t in moved):
        filled = (
            jnp.zeros_like(x) if isinstance(t, ad.Zero) else t
            for t, x in zip(moved, primals[num_residuals:], strict=True)
        )
        parts.append(bind(*known, *filled))
    if any(moving):
        chosen = (*moving, *(False for _ in moved))
        parts.append(
            _tangent_only(
                lambda *flat: tuple(fun(flat[:num_residuals], flat[num_residuals:])),
                tuple(primals),
                chosen,
                _pick(tangents, chosen),
                outputs,
                "A reverse-mode derivative of a second derivative of attention is not available "
                "here. Use implementation='reference', or forward mode for the outer derivative.",
            )
        )
    return outputs, [functools.reduce(jnp.add, terms) for terms in zip(*parts, strict=True)]


ad.primitive_jvps[_linear_p] = _jvp_rule


def _batch_rule(
    args: Sequence[Array],
    dims: Sequence,
    *,
    fun: Callable,
    transpose: Callable,
    num_residuals: int,
    shapes: tuple,
) -> tuple[list[Array], list[int]]:
    size = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
    known_dims, moved_dims = dims[:num_residuals], dims[num_residuals:]

    def batched(known: Arrays, moved: Arrays) -> Arrays:
        in_axes = (known_dims, moved_dims)
        return jax.vmap(lambda k, m: tuple(fun(k, m)), in_axes, 0, axis_size=size)(known, moved)

    def batched_transpose(known: Arrays, cotangents: tuple[Array | None, ...]) -> Arrays:
        in_axes = (known_dims, 0)
        grads = jax.vmap(transpose, in_axes, 0, axis_size=size)(known, cotangents)
        return tuple(
            jnp.sum(g, axis=0) if d is None else jnp.moveaxis(g, 0, d)
            for g, d in zip(grads, moved_dims, strict=True)
        )

    outputs = _linear_p.bind(
        *args,
        fun=batched,
        transpose=batched_transpose,
        num_residuals=num_residuals,
        shapes=tuple(((size, *shape), dtype) for shape, dtype in shapes),
    )
    return outputs, [0] * len(outputs)


batching.primitive_batchers[_linear_p] = _batch_rule
