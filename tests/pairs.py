"""Chooses combinations of values such that every pair of values occurs together early."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

Combination = tuple[object, ...]
# Combinations that each step chooses among.
_TRIES = 400


def pairs(combination: Combination) -> list[tuple]:
    """Returns the pairs of values, with their places, that occur in a combination."""
    return list(itertools.combinations(enumerate(combination), 2))


def all_pairs(factors: Mapping[str, Sequence]) -> set[tuple]:
    """Returns every pair of values of two factors."""
    return {pair for chosen in itertools.product(*factors.values()) for pair in pairs(chosen)}


def spread(factors: Mapping[str, Sequence], count: int, seed: int = 0) -> list[Combination]:
    """Chooses distinct combinations, each for the pairs that those before it have least.

    Args:
      factors: values by name.
      count: how many to choose.
      seed: of the candidates drawn at each step.

    Returns:
      The combinations, with the values in the order of the factors.
    """
    rng = np.random.default_rng(seed)
    values = list(factors.values())
    met: Counter[tuple] = Counter()
    chosen: dict[Combination, None] = {}
    while len(chosen) < count:
        drawn = [tuple(v[rng.integers(len(v))] for v in values) for _ in range(_TRIES)]
        fresh = [c for c in drawn if c not in chosen]
        best = max(fresh, key=lambda c: sum(8.0 ** -met[pair] for pair in pairs(c)))
        chosen[best] = None
        met.update(pairs(best))
    return list(chosen)
