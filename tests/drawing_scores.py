"""Hypothesis strategies for score_mods, each with its meaning in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import attnjax
from tests.drawing import Draw, Sizes, along, generator
from tests.oracle import PlainScoreMod

Arrays = dict[str, Any]


class ScoreCase(NamedTuple):
    """A score_mod made from named float arrays, and what it does to one score."""

    name: str
    arrays: dict[str, np.ndarray]
    build: Callable[[Arrays], Any]
    plain: Callable[[dict[str, np.ndarray]], PlainScoreMod]


def _alibi(draw: Draw, size: Sizes) -> ScoreCase:
    return ScoreCase(
        "alibi",
        {"slopes": generator(draw).uniform(0.05, 0.5, size.N)},
        lambda a: attnjax.alibi(a["slopes"]),
        lambda a: lambda s, b, h, i, j: s - a["slopes"][h] * abs(i - j),
    )


def _soft_cap(draw: Draw, size: Sizes) -> ScoreCase:
    return ScoreCase(
        "soft_cap",
        {"cap": np.asarray(generator(draw).uniform(0.7, 3))},
        lambda a: attnjax.soft_cap(a["cap"]),
        lambda a: lambda s, b, h, i, j: a["cap"] * math.tanh(s / a["cap"]),
    )


def _temperature(draw: Draw, size: Sizes) -> ScoreCase:
    shape = (size.N,) if draw(st.booleans()) else ()
    return ScoreCase(
        "temperature",
        {"value": np.asarray(generator(draw).uniform(0.6, 2, shape))},
        lambda a: attnjax.temperature(a["value"]),
        lambda a: lambda s, b, h, i, j: s / np.broadcast_to(a["value"], (size.N,))[h],
    )


def _bias(draw: Draw, size: Sizes) -> ScoreCase:
    full = (size.B, size.N, size.T, size.S)
    rank = draw(st.integers(0, 4))
    shape = tuple(n if draw(st.booleans()) else 1 for n in full[4 - rank :])
    return ScoreCase(
        "bias",
        {"array": np.asarray(generator(draw).normal(size=shape))},
        lambda a: attnjax.bias(a["array"]),
        lambda a: lambda s, b, h, i, j: s + np.broadcast_to(a["array"], full)[b, h, i, j],
    )


def _clipped(draw: Draw, size: Sizes) -> ScoreCase:
    reach = draw(st.integers(0, 6))

    def plain(a: dict[str, np.ndarray]) -> PlainScoreMod:
        return lambda s, b, h, i, j: s + a["table"][h, min(max(j - i, -reach), reach) + reach]

    return ScoreCase(
        "relative_bias",
        {"table": generator(draw).normal(size=(size.N, 2 * reach + 1))},
        lambda a: attnjax.relative_bias(a["table"]),
        plain,
    )


def _t5(draw: Draw, size: Sizes) -> ScoreCase:
    bidirectional = draw(st.booleans())
    buckets = 8 if bidirectional else 6

    def bucket(distance: int) -> int:
        offset, n = 0, buckets
        if bidirectional:
            n //= 2
            offset = n if distance > 0 else 0
        else:
            distance = min(distance, 0)
        distance = abs(distance)
        if distance < n // 2:
            return offset + distance
        steps = (n - n // 2) * math.log(distance / (n // 2)) / math.log(20 / (n // 2))
        return offset + min(n // 2 + int(steps), n - 1)

    return ScoreCase(
        "t5",
        {"table": generator(draw).normal(size=(size.N, buckets))},
        lambda a: attnjax.relative_bias(
            a["table"], kind="t5", bidirectional=bidirectional, max_distance=20
        ),
        lambda a: lambda s, b, h, i, j: s + a["table"][h, bucket(j - i)],
    )


_SIGMA: dict[str, Callable[[float], float]] = {
    "identity": lambda x: x,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "relu": lambda x: max(x, 0.0),
}


def _activated(draw: Draw, size: Sizes) -> ScoreCase:
    activation = draw(st.sampled_from(sorted(_SIGMA)))
    rng = generator(draw)
    arrays = {}
    if draw(st.booleans()):
        lead = draw(st.sampled_from([(), (size.B,), (size.B, size.N)]))
        arrays["per_key"] = rng.normal(size=(*lead, size.S))
    if draw(st.booleans()):
        shape = draw(st.sampled_from([(), (size.N,), (size.B, size.N)]))
        arrays["bias"] = np.asarray(rng.normal(size=shape))

    def plain(a: dict[str, np.ndarray]) -> PlainScoreMod:
        def mod(s: float, b: int, h: int, i: int, j: int) -> float:
            if "per_key" in a:
                per_key = a["per_key"]
                s += per_key[(b, h)[: per_key.ndim - 1]][j]
            if "bias" in a:
                s += a["bias"][(b, h)[2 - a["bias"].ndim :]]
            return _SIGMA[activation](s)

        return mod

    return ScoreCase(
        f"activated-{activation}", arrays, lambda a: attnjax.activated(activation, **a), plain
    )


def _declared(draw: Draw, size: Sizes) -> ScoreCase:
    rng = generator(draw)
    head = rng.normal(size=(size.B, size.N) if draw(st.booleans()) else (size.N,))
    query, _ = along(draw, size, "T", lambda shape: rng.normal(size=shape))
    key, _ = along(draw, size, "S", lambda shape: rng.normal(size=shape))

    def indexed(array: np.ndarray, b: int, h: int, x: int) -> float:
        return array[(b, h)[: array.ndim - 1]][x]

    return ScoreCase(
        "declared",
        {"head": head, "query": query, "key": key},
        lambda a: attnjax.score_mod(
            lambda s, b, h, q, k, w, x, y: s * jnp.cos(w) + jnp.sin(x + 0.1 * h) * y["part"],
            per_head=a["head"],
            per_query=a["query"],
            per_key={"part": a["key"]},
        ),
        lambda a: (
            lambda s, b, h, i, j: (
                s * math.cos(np.broadcast_to(a["head"], (size.B, size.N))[b, h])
                + math.sin(indexed(a["query"], b, h, i) + 0.1 * h) * indexed(a["key"], b, h, j)
            )
        ),
    )


def _closure(draw: Draw, size: Sizes) -> ScoreCase:
    rng = generator(draw)
    return ScoreCase(
        "closure",
        {
            "table": rng.normal(size=(size.N, size.T + size.S)),
            "gain": np.asarray(rng.uniform(0.5, 1.5)),
        },
        lambda a: lambda s, b, h, q, k: a["gain"] * s + a["table"][h, q - k + size.S],
        lambda a: lambda s, b, h, i, j: a["gain"] * s + a["table"][h, i - j + size.S],
    )


SCORE_MODS: dict[str, Callable[[Draw, Sizes], ScoreCase]] = {
    "alibi": _alibi,
    "soft_cap": _soft_cap,
    "temperature": _temperature,
    "bias": _bias,
    "clipped": _clipped,
    "t5": _t5,
    "activated": _activated,
    "declared": _declared,
    "closure": _closure,
}


@st.composite
def score_mods(draw: Draw, size: Sizes, most: int = 3) -> tuple[ScoreCase, ...]:
    """Draws a tuple of score_mods."""
    count = min(most, draw(st.sampled_from([1, 2, 3, 0])))
    names = [draw(st.sampled_from(sorted(SCORE_MODS))) for _ in range(count)]
    return tuple(SCORE_MODS[name](draw, size) for name in names)
