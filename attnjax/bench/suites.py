"""The suites that measure on the device at hand: `cpu`, `gpu`, `tpu`."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.bench import cases
from attnjax.bench.cases import Shape, Work
from attnjax.bench.contestants import Contestant, roster
from attnjax.bench.prepared import Prepared
from attnjax.bench.report import entry
from attnjax.bench.timing import Clock, OutOfTimeError, attempt, disturbed, samples

# Relative to the largest value of an array.
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}
# Share of a case's time in which contestants get ready; the rest is for running them.
_READY = 0.65


@dataclasses.dataclass(frozen=True)
class Suite:
    """What a suite measures.

    Attributes:
      platform: what it runs on.
      shape: of every case.
      matrix: side of the square matrices whose product is the device's rate.
      limit: seconds that the whole suite may take.
      rounds: samples of each contestant, if time allows.
      side_by_side: whether contestants get ready at the same time. On a CPU that would take the
        memory of all of them at once, and no less time.
    """

    platform: str
    shape: Shape
    matrix: int
    limit: float
    rounds: int
    side_by_side: bool


SUITES = {
    "cpu": Suite("cpu", Shape(1, 4096, 8, 64, "float32"), 2048, 1200.0, 5, False),
    "gpu": Suite("gpu", Shape(1, 8192, 16, 128, "bfloat16"), 8192, 420.0, 9, True),
    "tpu": Suite("tpu", Shape(1, 8192, 8, 128, "bfloat16"), 8192, 900.0, 9, True),
}


def measure(
    suite: Suite,
    *,
    names: Sequence[str] = cases.NAMES,
    directions: Sequence[str] = cases.DIRECTIONS,
    contestants: Sequence[Contestant] | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Runs a suite.

    Args:
      suite: what to measure.
      names: the cases.
      directions: `fwd`, `fwdbwd`.
      contestants: who takes part; all by default.
      log: where progress goes.

    Returns:
      `matrix_tflops`, `unit` of the samples, `seconds` spent and `rows`, one for each contestant,
      case and direction; see `attnjax.bench.report.entry`.
    """
    clock = Clock(suite.limit)
    everyone = roster() if contestants is None else list(contestants)
    rows: list[dict[str, Any]] = []
    present = []
    for contestant in everyone:
        if (reason := contestant.absent(suite.platform)) is None:
            present.append(contestant)
        else:
            rows.append(entry(contestant.name, "all", "all", "absent", reason))
    rate = matrix_rate(suite, clock)
    log(f"matrix products: {rate:.2f} TFLOP/s")
    for k, name in enumerate(names):
        part = clock.part(1 / (len(names) - k))
        known = _work(suite, name, directions, part)
        for j, direction in enumerate(directions):
            if isinstance(known, Exception):
                why = f"no right numbers to compare with: {known}"
                found = [entry(c.name, name, direction, "skipped", why) for c in present]
            else:
                share = part.part(1 / (len(directions) - j))
                found = _case(suite, *known, direction, present, share)
            for row in found:
                if row["status"] == "ok":
                    row["share"] = row["tflops"] / rate
                log(line(row))
            rows += found
    spent = suite.limit - clock.left()
    return {"unit": "s", "matrix_tflops": rate, "rows": rows, "seconds": spent}


def matrix_rate(suite: Suite, clock: Clock) -> float:
    """Returns the device's rate of matrix products in the suite's type, in TFLOP/s."""
    side = suite.matrix
    x = jnp.ones((side, side), suite.shape.dtype)
    product = jax.jit(jnp.dot)
    prepared = Prepared(lambda: product(x, x), jax.block_until_ready, dict)
    prepared.wait(prepared.run())
    seconds = samples({"product": prepared}, clock, rounds=9, least=3)["product"]
    return 2 * side**3 / statistics.median(seconds) / 1e12


def line(row: dict[str, Any]) -> str:
    """Returns a row as one line of text."""
    head = f"{row['case']:10} {row['direction']:7} {row['contestant']:18}"
    if row["status"] != "ok":
        return f"{head} {row['status']}: {' '.join(row['reason'].split())[:120]}"
    ratio = "" if row["ratio"] is None else f"{row['ratio']:7.2f} x attnjax"
    return f"{head} {row['median'] * 1e3:10.3f} ms {row['tflops']:8.2f} TFLOP/s {ratio}"


def _work(
    suite: Suite, name: str, directions: Sequence[str], clock: Clock
) -> tuple[Work, dict[str, np.ndarray]] | Exception:
    """Returns a case and its right numbers, or why there are none."""
    if clock.left() <= 0:
        return OutOfTimeError("the suite's time was over")
    widest = "fwdbwd" if "fwdbwd" in directions else "fwd"

    def prepare() -> tuple[Work, dict[str, np.ndarray]]:
        work = cases.make(name, suite.shape)
        return work, cases.reference(work, widest)

    return attempt({name: prepare}, clock)[name]


def _case(
    suite: Suite,
    work: Work,
    expected: Mapping[str, np.ndarray],
    direction: str,
    contestants: Sequence[Contestant],
    clock: Clock,
) -> list[dict[str, Any]]:
    """Measures all contestants on a case; checks their numbers before any timing."""

    def failed(contestant: Contestant, status: str, reason: str) -> dict[str, Any]:
        return entry(contestant.name, work.name, direction, status, reason)

    ready: dict[str, Prepared] = {}
    rows: dict[str, dict[str, Any]] = {}
    for contestant, result in _prepared(suite, work, direction, contestants, clock.part(_READY)):
        if isinstance(result, Prepared):
            if (bad := _check(result, expected, suite.shape.dtype)) is None:
                ready[contestant.name] = result
            else:
                rows[contestant.name] = failed(contestant, *bad)
        elif isinstance(result, NotImplementedError):
            rows[contestant.name] = failed(contestant, "refused", str(result))
        elif isinstance(result, OutOfTimeError):
            rows[contestant.name] = failed(contestant, "skipped", str(result))
        else:
            reason = f"{type(result).__name__}: {result}"
            rows[contestant.name] = failed(contestant, "failed", reason[:1000])
    beside = disturbed()
    seconds = samples(ready, clock, rounds=suite.rounds, least=2)
    medians = {n: statistics.median(x) for n, x in seconds.items()}
    first = medians.get("attnjax")
    for n, prepared in ready.items():
        rows[n] = {
            **entry(n, work.name, direction, "ok", ""),
            "note": prepared.note,
            "samples": seconds[n],
            "median": medians[n],
            "ratio": None if first is None else medians[n] / first,
            "tflops": work.flops(direction) / medians[n] / 1e12,
            "temporaries": prepared.temporaries,
            "device_peak": _peak(),
            "disturbed": beside,
        }
    return [rows[c.name] for c in contestants]


def _prepared(
    suite: Suite, work: Work, direction: str, contestants: Sequence[Contestant], clock: Clock
) -> list[tuple[Contestant, Prepared | Exception]]:
    """Gets contestants ready, in the order of their importance where they take turns."""
    jobs = {c.name: lambda c=c: c.prepare(work, direction) for c in contestants}
    if suite.side_by_side:
        results = attempt(jobs, clock)
    else:
        results = {}
        for name, job in jobs.items():
            over = OutOfTimeError("the time of this case was over")
            results[name] = attempt({name: job}, clock)[name] if clock.left() > 0 else over
    return [(c, results[c.name]) for c in contestants]


def _check(
    prepared: Prepared, expected: Mapping[str, np.ndarray], dtype: str
) -> tuple[str, str] | None:
    """Returns the status and the reason of a contestant whose results are not right, or None."""
    try:
        for name, found in prepared.results().items():
            right = expected[name]
            scale = float(np.max(np.abs(right)))
            tolerance = TOLERANCES[dtype]
            np.testing.assert_allclose(
                found, right, rtol=tolerance, atol=tolerance * scale, err_msg=name
            )
    except AssertionError as error:
        return "wrong", " ".join(str(error).split())[:500]
    except Exception as error:
        # It compiled, and failed when it ran; as on a device without the memory for it.
        return "failed", f"{type(error).__name__}: {error}"[:500]
    return None


def _peak() -> int | None:
    """Returns the most bytes that the device held since the process began, where it tells."""
    found = jax.devices()[0].memory_stats()
    return None if found is None else found.get("peak_bytes_in_use")
