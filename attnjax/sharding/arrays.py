"""The arrays of a call, the axes along which they vary, and the call made of their parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jaxtyping import Array

from attnjax.masks import And, Mask, Not, Or, Segments, Where, walk
from attnjax.numerics import widen
from attnjax.operands import Operand
from attnjax.ops.softmax.problem import Problem
from attnjax.scores import Declared, ScoreMod
from attnjax.scores.positional import RelativeBias
from attnjax.typing import is_array

Windows = Mapping[str, tuple[Array | int, int]]

# Shape of the tile on which functions of the caller are traced to find what they capture.
_TILE = (1, 1, 1, 1, 1)


@dataclasses.dataclass(frozen=True)
class Pieces:
    """A call, taken apart.

    Attributes:
      arrays: all its arrays, those that functions of the caller capture included.
      axes: for each array a letter per dimension: one of B, T, S, N, K and R, or `.` where every
        part of the call needs the whole dimension.
      rebuild: makes the call, or a part of it, of as many arrays.
    """

    arrays: tuple[Array, ...]
    axes: tuple[str, ...]
    rebuild: Callable[[Sequence[Array]], Problem]

    def part(self, arrays: Sequence[Array], windows: Windows) -> list[Array]:
        """Cuts arrays along axes, by the start and the length that belong to each letter."""
        found = []
        for x, axes in zip(arrays, self.axes, strict=True):
            for axis, letter in enumerate(axes):
                if letter in windows:
                    x = jax.lax.dynamic_slice_in_dim(x, *windows[letter], axis=axis)
            found.append(x)
        return found

    def add(
        self,
        totals: Sequence[Array | None],
        parts: Mapping[int, Array],
        windows: Windows,
    ) -> list[Array | None]:
        """Adds cotangents of `part`'s arrays, by their numbers, to totals of the whole."""
        return [
            x if x is None or n not in parts else _add(x, parts[n], [windows.get(a) for a in axes])
            for n, (x, axes) in enumerate(zip(totals, self.axes, strict=True))
        ]


def take_apart(problem: Problem) -> Pieces:
    """Takes a call apart.

    Raises:
      NotImplementedError: if a score_mod looks up an array that it computes or hides from JAX.
    """
    sizes = problem.sizes
    problem = dataclasses.replace(
        problem,
        mask=map_leaves(problem.mask, _both_ids),
        score_mods=tuple(
            m.by_distance(sizes) if isinstance(m, RelativeBias) else m for m in problem.score_mods
        ),
    )
    axes: list[str] = []
    for field in dataclasses.fields(problem):
        value = getattr(problem, field.name)
        if field.metadata.get("static"):
            continue
        match field.name:
            case "q":
                axes.append("BTN.")
            case "k" | "v":
                axes.append("BSK.")
            case "sinks" if value is not None:
                axes.append("N")
            case "mask":
                for leaf in walk(value):
                    axes += _axes_of(leaf, leaf.operands())
            case "score_mods":
                for mod in value:
                    operands = mod.operands(sizes) if isinstance(mod, ScoreMod) else ()
                    axes += _axes_of(mod, operands)
            case _:
                axes += ["." * jnp.ndim(x) for x in jax.tree.leaves(value)]
    leaves, structure = jax.tree.flatten(problem)
    arrayed = [is_array(x) for x in leaves]
    given = [x for x, chosen in zip(leaves, arrayed, strict=True) if chosen]
    assert len(given) == len(axes), "every array has its axes"
    # Typed PRNG keys take no part in derivatives, not even as integers do.
    key_of = {n: jax.random.key_impl(x) for n, x in enumerate(given) if _is_key(x)}
    arrays = [jax.random.key_data(x) if n in key_of else x for n, x in enumerate(given)]
    for n in key_of:
        axes[n] = "." * arrays[n].ndim
    captured = _captured(problem)
    count = len(arrays)

    def rebuild(given: Sequence[Array]) -> Problem:
        own, values = list(given[:count]), given[count:]
        for n, impl in key_of.items():
            own[n] = jax.random.wrap_key_data(own[n], impl=impl)
        rest = iter(own)
        filled = [next(rest) if chosen else x for x, chosen in zip(leaves, arrayed, strict=True)]
        found: Problem = jax.tree.unflatten(structure, filled)
        replaced = {id(old): new for old, new in zip(captured, values, strict=True)}
        return _bind(found, replaced) if replaced else found

    return Pieces((*arrays, *captured), (*axes, *("." * np.ndim(x) for x in captured)), rebuild)


def _add(total: Array, part: Array, windows: Sequence[tuple[Array | int, int] | None]) -> Array:
    starts = [0 if w is None else w[0] for w in windows]
    old = jax.lax.dynamic_slice(total, starts, part.shape)
    return jax.lax.dynamic_update_slice(total, old + part.astype(total.dtype), starts)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def map_leaves(mask: Mask, function: Callable[[Mask], Mask]) -> Mask:
    """Returns a mask whose leaves are what a function made of them."""
    match mask:
        case And() | Or():
            return type(mask)(map_leaves(mask.left, function), map_leaves(mask.right, function))
        case Not():
            return Not(map_leaves(mask.inner, function))
    return function(mask)


def _both_ids(mask: Mask) -> Mask:
    """Gives Segments ids of their own along keys, which are cut in other places than queries."""
    if isinstance(mask, Segments) and mask.kv_ids is None:
        return Segments(mask.q_ids, mask.q_ids)
    return mask


def _axes_of(owner: Any, operands: Sequence[Operand]) -> list[str]:
    """Returns the axes of the arrays inside a mask leaf or a score_mod, in their order."""
    remaining = list(operands)
    found = []
    for leaf in jax.tree.leaves(owner):
        if not is_array(leaf):
            continue
        place = next((n for n, o in enumerate(remaining) if o.array is leaf), None)
        if place is None:
            found.append("." * jnp.ndim(leaf))
            continue
        operand = remaining[place]
        remaining = remaining[place + 1 :]
        found.append(
            "".join(
                "." if n == 1 else a for a, n in zip(operand.axes, operand.array.shape, strict=True)
            )
        )
    known = {id(x) for x in jax.tree.leaves(owner)}
    for operand in operands:
        if operand.axes and id(operand.array) not in known:
            raise NotImplementedError(
                f"partition: {operand.name} of {type(owner).__name__} is computed by the score_mod "
                "or is hidden from JAX, so it cannot be cut for each device. Make the class a "
                "pytree (jax.tree_util.register_dataclass) whose operands are its own fields."
            )
    return found


def _functions(problem: Problem) -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Yields the functions of the caller, each with examples of its arguments."""
    index = (jnp.zeros(_TILE, jnp.int32),) * 4
    score = jnp.zeros(_TILE, problem.accumulation_dtype)
    for mod in problem.score_mods:
        if isinstance(mod, Declared):
            declared = (
                _examples(x, score.dtype) for x in (mod.per_head, mod.per_query, mod.per_key)
            )
            yield mod.fn, (score, *index, *(x for x in declared if x is not None))
        elif not isinstance(mod, ScoreMod):
            yield mod, (score, *index)
    for leaf in walk(problem.mask):
        if isinstance(leaf, Where):
            both = (_examples(x, None) for x in (leaf.per_query, leaf.per_key) if x is not None)
            yield leaf.fn, (*index, *both)
            if leaf.block_rule is not None:
                yield leaf.block_rule, tuple(x[:1, :1, :1, :1, 0] for x in index)


def _examples(tree: Any, dtype: Any) -> Any:
    def example(x: Array) -> Array:
        tile = jnp.zeros(_TILE, x.dtype)
        return tile if dtype is None else widen(tile, dtype)

    return jax.tree.map(example, tree)


def _captured(problem: Problem) -> list[Array]:
    """Returns the JAX arrays that functions of the caller capture, each once."""
    found: dict[int, Array] = {}
    for function, examples in _functions(problem):
        for x in jax.make_jaxpr(function)(*examples).consts:
            if isinstance(x, jax.Array):
                found[id(x)] = x
    return list(found.values())


def _bind(problem: Problem, values: dict[int, Array]) -> Problem:
    """Gives functions of the caller other arrays in the place of those that they capture."""

    def bind(function: Callable[..., Any] | None) -> Any:
        return None if function is None else _Bound(function, values)

    def bind_mod(mod: Any) -> Any:
        if isinstance(mod, Declared):
            return dataclasses.replace(mod, fn=bind(mod.fn))
        return mod if isinstance(mod, ScoreMod) else bind(mod)

    def bind_leaf(leaf: Mask) -> Mask:
        if not isinstance(leaf, Where):
            return leaf
        return Where(bind(leaf.fn), leaf.per_query, leaf.per_key, bind(leaf.block_rule))

    return dataclasses.replace(
        problem,
        mask=map_leaves(problem.mask, bind_leaf),
        score_mods=tuple(bind_mod(m) for m in problem.score_mods),
    )


class _Bound:
    """A function with other arrays in the place of those that it captures."""

    def __init__(self, function: Callable[..., Any], values: dict[int, Array]) -> None:
        self._function, self._values = function, values

    def __call__(self, *args: Any) -> Any:
        closed, shape = jax.make_jaxpr(self._function, return_shape=True)(*args)
        consts = [self._values.get(id(x), x) for x in closed.consts]
        flat = jaxpr_as_fun(closed.replace(consts=consts))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), flat)
