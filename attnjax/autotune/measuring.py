"""Measures the options of implementations on the device at hand."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops import tuning
from attnjax.ops.choosing import choose
from attnjax.ops.softmax.dispatch import IMPLEMENTATIONS
from attnjax.ops.softmax.problem import Problem
from attnjax.ops.tuning import Key
from attnjax.validate import make_problem

# Below this gain the default stays, for times differ by as much from run to run.
_WORTH = 0.03
# Slower than the best by this factor after one round, a candidate is not timed again.
_HOPELESS = 1.5
_MOST_SCORES = 1 << 24
_UNSET = dict.fromkeys(("mask", "score_mod", "scale", "sinks", "dropout", "precision"))


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What `measure` found. Print it to read it.

    Attributes:
      key: what it serves: device, implementation and kind of call.
      options: the best options.
      seconds: the time that decided, with them.
      default_seconds: the same with the defaults.
      backward: whether that is the time of forward and backward together.
      times: for each pass (`forward`, `backward`: forward and backward together), the median
        seconds of the candidates that were timed.
      failures: for each candidate that did not compile or gave other numbers, the reason.
    """

    key: Key
    options: Mapping[str, int]
    seconds: float
    default_seconds: float
    backward: bool
    times: Mapping[str, Mapping[str, float]]
    failures: Mapping[str, str]

    def __str__(self) -> str:
        """Returns the times as a short table."""
        which = "forward and backward" if self.backward else "forward"
        lines = [
            f"{self.key.implementation} on {self.key.device}: {show(self.options)}",
            f"{which} in {self.seconds * 1e3:.3g} ms, by default {self.default_seconds * 1e3:.3g}",
        ]
        for name, times in self.times.items():
            lines += [f"  {name}, {options}: {s * 1e3:.3g} ms" for options, s in times.items()]
        lines += [f"  failed, {options}: {reason}" for options, reason in self.failures.items()]
        return "\n".join(lines)


def measure(
    q: Any,
    k: Any,
    v: Any,
    *,
    implementation: str | None = None,
    backward: bool = True,
    stats: bool = False,
    repeats: int = 5,
    **options: Any,
) -> Measurement:
    """Measures the block sizes of an attention call on the device at hand.

    Candidates are those of the implementation. Each is compiled and its numbers are compared, then
    all are timed in turns. Writes nothing: see `save`.

    Args:
      q: queries, an array or a `jax.ShapeDtypeStruct`, which stands for random numbers.
      k: keys, likewise.
      v: values, likewise.
      implementation: as in `attnjax.attention`.
      backward: whether what counts is the time of forward and backward together, as in training,
        or of the forward pass alone.
      stats: as in `attnjax.attention`.
      repeats: timed runs of each candidate.
      **options: the other arguments of `attnjax.attention`. Their arrays of integers and bools must
        be given, for they decide what there is to compute.

    Returns:
      The times and the best options; the defaults, unless others are faster by 3%.

    Raises:
      ValueError: if an argument is wrong, if there is nothing to compute, or if the implementation
        has no options.
      NotImplementedError: if the named implementation can't do what was asked.
    """
    if unknown := options.keys() - _UNSET.keys():
        raise ValueError(
            f"measure: expected arguments of attnjax.attention, got {', '.join(sorted(unknown))}."
        )
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise ValueError(f"repeats: expected a positive integer, got {repeats!r}.")
    given = {"q": q, "k": k, "v": v, **_UNSET, **options}
    precision = given.pop("precision")
    leaves, structure = jax.tree.flatten(given)
    leaves = [_filled(x, n) for n, x in enumerate(leaves)]
    places = [n for n, x in enumerate(leaves) if hasattr(x, "dtype")]

    def problem_of(arrays: list[Any]) -> Problem:
        filled = list(leaves)
        for n, x in zip(places, arrays, strict=True):
            filled[n] = x
        call = jax.tree.unflatten(structure, filled)
        return make_problem(**call, precision=precision, stats=stats)

    arrays = [leaves[n] for n in places]
    with tuning.using(None):
        problem = problem_of(arrays)
        if 0 in problem.sizes.values():
            raise ValueError(f"q, k, v: expected no empty axis, got sizes {problem.sizes}.")
        name = choose(IMPLEMENTATIONS, problem, implementation).name
        key = Key(tuning.device(), name, tuning.kind_of(problem))
        return _Search(problem_of, arrays, name, backward, repeats).run(key)


class _Search:
    """Measures the candidates of one implementation, stage by stage."""

    def __init__(
        self,
        problem_of: Callable[[list[Any]], Problem],
        arrays: list[Any],
        name: str,
        backward: bool,
        repeats: int,
    ) -> None:
        self.problem_of, self.arrays, self.name = problem_of, arrays, name
        self.backward, self.repeats = backward, repeats
        self.runs: dict[tuple[str, bool], Callable[[], Any]] = {}
        self.expected: dict[bool, Any] = {}
        self.times: dict[str, dict[str, float]] = {"forward": {}, "backward": {}}
        self.failures: dict[str, str] = {}

    def run(self, key: Key) -> Measurement:
        """Returns the best options; each stage starts from the best of those before."""
        problem = self.problem_of(self.arrays)
        default: dict[str, int] = {}
        best: dict[str, int] = {}
        for stage in IMPLEMENTATIONS[self.name].stages:
            if stage.timed == "backward" and not self.backward:
                continue
            candidates = stage.candidates(problem)
            default |= candidates[0]
            backward = self.backward and stage.timed != "forward"
            best = self.fastest([best | c for c in candidates], backward)
        if not best:
            able = ", ".join(n for n, x in IMPLEMENTATIONS.items() if x.stages)
            raise ValueError(
                f"implementation: {self.name} has no options to measure; expected one of {able}."
            )
        # Once more, for the best of many times is too good a time.
        seconds = self.time([default, best], self.backward)
        usual = seconds.get(show(default), float("inf"))
        if seconds[show(best)] > usual * (1 - _WORTH):
            best = default
        times = {name: found for name, found in self.times.items() if found}
        failures = self.failures
        found = seconds[show(best)]
        return Measurement(key, best, found, usual, self.backward, times, failures)

    def fastest(self, candidates: list[dict[str, int]], backward: bool) -> dict[str, int]:
        """Times candidates, and returns the fastest."""
        seconds = self.time(candidates, backward)
        if not seconds:
            raise ValueError(f"{self.name}: no candidate computes this call; {self.failures}.")
        self.times["backward" if backward else "forward"] |= seconds
        return next(c for c in candidates if show(c) == min(seconds, key=lambda n: seconds[n]))

    def time(self, candidates: list[dict[str, int]], backward: bool) -> dict[str, float]:
        """Returns the median seconds of those candidates that compute the right numbers."""
        able = [show(c) for c in candidates if self.able(c, backward)]
        seconds: dict[str, list[float]] = {name: [] for name in able}
        for turn in range(self.repeats):
            quickest = min((s[0] for s in seconds.values() if s), default=float("inf"))
            for name in seconds:
                if turn and seconds[name][0] > _HOPELESS * quickest:
                    continue
                run = self.runs[name, backward]
                jax.block_until_ready(run())
                start = time.perf_counter()
                jax.block_until_ready(run())
                seconds[name].append(time.perf_counter() - start)
        return {name: statistics.median(s) for name, s in seconds.items()}

    def able(self, options: dict[str, int], backward: bool) -> bool:
        """Compiles a candidate, and compares its numbers with the reference's or the first's."""
        name = show(options)
        if name in self.failures:
            return False
        if (name, backward) in self.runs:
            return True
        try:
            run = self.compiled(self.name, options, backward)
            got = run()
        except Exception as error:
            # Whatever the compiler raises, for example for want of memory, is a result here.
            self.failures[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            return False
        if backward not in self.expected:
            size = self.problem_of(self.arrays).sizes
            small = size["B"] * size["N"] * size["T"] * size["S"] <= _MOST_SCORES
            self.expected[backward] = self.compiled("reference", {}, backward)() if small else got
        if reason := _difference(got, self.expected[backward]):
            self.failures[name] = reason
            return False
        self.runs[name, backward] = run
        return True

    def compiled(self, name: str, options: dict[str, int], backward: bool) -> Callable[[], Any]:
        """Compiles a call by an implementation, and its gradients if they are timed."""
        attend: Callable[..., Any] = IMPLEMENTATIONS[name].attend

        def forward(arrays: list[Any]) -> Any:
            return attend(self.problem_of(arrays), **options)

        def both(arrays: list[Any]) -> Any:
            moved, rest = arrays[:3], arrays[3:]
            out, pull = jax.vjp(lambda *qkv: forward([*qkv, *rest])[0], *moved)
            return out, pull(_weights(out))

        compiled = jax.jit(both if backward else forward).lower(self.arrays).compile()
        return lambda: compiled(self.arrays)


def _filled(x: Any, n: int) -> Any:
    if not isinstance(x, jax.ShapeDtypeStruct):
        return x
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"measure: expected the values of arrays of {x.dtype}, which decide what there is to "
            f"compute, got shape {x.shape} alone."
        )
    return jax.random.normal(jax.random.key(n), x.shape, jnp.float32).astype(x.dtype)


def _weights(out: jax.Array) -> jax.Array:
    """Returns cotangents that differ from number to number."""
    return jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape).astype(out.dtype)


def _difference(got: Any, want: Any) -> str:
    """Says how far numbers are apart, if they are; gradients add up more terms than outputs."""
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        tolerance = 1e-3 if x.dtype.itemsize >= 4 else 5e-2
        x, y = (np.asarray(a, np.float64) for a in (x, y))
        finite = np.isfinite(y)
        scale = np.max(np.abs(y[finite]), initial=1e-30)
        try:
            np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * scale)
        except AssertionError as error:
            return " ".join(str(error).split())[:200]
    return ""


def show(options: Mapping[str, int]) -> str:
    """Returns options as text."""
    return ", ".join(f"{name}={value}" for name, value in options.items())
