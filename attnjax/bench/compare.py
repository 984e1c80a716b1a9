"""Sets two results beside each other and says which differences exceed the noise seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attnjax.bench.report import spread, value

# Where the machine is compared, not the code.
_MACHINE = ("device", "processor", "packages", "flags")


def compare(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of a Markdown table of ratios.

    A difference exceeds the noise if no sample of one is among the samples of the other. A single
    sample, as of a compiler's count, has no noise.

    Args:
      before: a result, as `report.read` returns it.
      after: another one of the same suite.

    Raises:
      ValueError: if they are of two suites.
    """
    if before["suite"] != after["suite"]:
        raise ValueError(
            f"expected two results of one suite; got {before['suite']} and {after['suite']}."
        )
    for key in _MACHINE:
        if before["fingerprint"][key] != after["fingerprint"][key]:
            yield f"{key} differs: {before['fingerprint'][key]} | {after['fingerprint'][key]}"
    if before["settings"] != after["settings"]:
        yield f"settings differ: {before['settings']} | {after['settings']}"
    if before.get("matrix_tflops") and after.get("matrix_tflops"):
        ratio = after["matrix_tflops"] / before["matrix_tflops"]
        yield f"rate of matrix products: {ratio:.3f} times as fast"
    yield ""
    yield "| case | direction | contestant | before | after | after / before | beyond the noise |"
    yield "|---|---|---|---|---|---|---|"
    first = {_key(x): x for x in before["rows"]}
    second = {_key(x): x for x in after["rows"]}
    for place in dict.fromkeys([*first, *second]):
        cells = _cells(first.get(place), second.get(place), after["unit"])
        yield f"| {' | '.join([*place, *cells])} |"


def exceeds_noise(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Returns whether the samples of two rows do not overlap."""
    (low, high), (other_low, other_high) = spread(before), spread(after)
    return high < other_low or other_high < low


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["case"], row["direction"], row["contestant"]


def _cells(before: dict[str, Any] | None, after: dict[str, Any] | None, unit: str) -> list[str]:
    texts = []
    for row in (before, after):
        if row is None:
            texts.append("not asked")
        else:
            texts.append(value(row["median"], unit) if row["status"] == "ok" else row["status"])
    if before is None or after is None or before["status"] != "ok" or after["status"] != "ok":
        return [*texts, "", ""]
    verdict = "no"
    if exceeds_noise(before, after):
        verdict = "slower" if after["median"] > before["median"] else "faster"
    return [*texts, f"{after['median'] / before['median']:.3f}", verdict]
