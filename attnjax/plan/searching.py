"""Finds the largest size that fits, and changes that make a plan fit, by compiling candidates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from attnjax.plan import targets
from attnjax.plan.planning import Plan, Request, make_plan

Axis = Literal["batch", "sequence"]
Say = Callable[[str], None]
TOGETHER = "together"


@dataclasses.dataclass(frozen=True)
class Largest:
    """What a search for the largest size found.

    Attributes:
      axis: what was enlarged.
      fits: the largest size that was compiled and fits; None if none does.
      too_large: the smallest that was compiled and does not; None if all fit.
      tried: all that were compiled, in their order.
    """

    axis: Axis
    fits: int | None
    too_large: int | None
    tried: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Change:
    """A change that was compiled and fits.

    Attributes:
      text: what to change, as options.
      plan: what came of it.
    """

    text: str
    plan: Plan


def largest(plan: Plan, axis: Axis, *, compiles: int, say: Say) -> Largest:
    """Looks for the largest batch or sequence that fits, where all else stays.

    Memory grows about linearly with either, so each try goes where the two nearest plans say that
    the limit is.

    Args:
      plan: where to begin.
      axis: what to enlarge.
      compiles: how many more plans may be compiled.
      say: told what is tried.

    Returns:
      What was found.

    Raises:
      ValueError: if the job has no such size.
    """
    request = plan.request
    step = request.job.granule(axis, request.mesh)
    limit = request.target.device.hbm
    known = {request.job.size(axis): plan}

    def fits() -> list[int]:
        return [n for n, p in known.items() if p.fits]

    def fails() -> list[int]:
        return [n for n, p in known.items() if not p.fits]

    for _ in range(compiles):
        low, high = max(fits(), default=0), min(fails(), default=math.inf)
        if high - low <= step:
            break
        aim = _aim({n: p.memory.total for n, p in known.items()}, limit)
        aim = min(max(aim // step * step, low + step), 8 * max(low, step))
        if aim >= high:
            aim = int(high) - step
        if high < math.inf and low and aim - low > (high - low) * 0.9:
            aim = (low + int(high)) // 2 // step * step or step
        aim = max(aim, low + step)
        say(f"trying {axis}={aim}")
        known[aim] = make_plan(request.replace(job=request.job.resized(axis, aim)))
    return Largest(axis, max(fits(), default=None), min(fails(), default=None), tuple(known))


def _aim(totals: Mapping[int, int], limit: int) -> int:
    """Returns where a line through the two largest sizes crosses the limit."""
    if len(totals) == 1:
        ((n, total),) = totals.items()
        return 2 * n if total <= limit else n // 2
    (n, a), (m, b) = sorted(totals.items(), key=lambda x: abs(x[1] - limit))[:2]
    if b == a or n == m:
        return 2 * max(n, m)
    return int(n + (limit - a) * (m - n) / (b - a))


def fixes(plan: Plan, *, wanted: int = 3, compiles: int = 12, say: Say) -> tuple[list[Change], int]:
    """Looks for changes that make a plan fit.

    Args:
      plan: one that does not fit.
      wanted: how many changes are enough; each is of another kind.
      compiles: how many plans may be compiled.
      say: told what is tried.

    Returns:
      Changes that were compiled and fit, and how many were compiled.
    """
    found: list[Change] = []
    done: set[str] = set()
    # Where one of the job's changes is enough by itself, it needs no other beside it.
    job_kinds = {kind for kind, *_ in plan.request.job.changes(plan.request.mesh)}
    tried = 0
    for kind, text, request in candidates(plan.request):
        if len(found) == wanted or tried == compiles:
            break
        if kind in done or (kind == TOGETHER and done & job_kinds):
            continue
        say(f"trying {text}")
        try:
            other = make_plan(request)
        except (ValueError, NotImplementedError, RuntimeError) as error:
            say(f"  not possible: {error}")
            continue
        tried += 1
        if other.fits:
            done.add(kind)
            found.append(Change(text, other))
        else:
            say(f"  {-other.headroom / 2**30:.2f} GiB too much")
    return found, tried


def candidates(request: Request) -> Iterator[tuple[str, str, Request]]:
    """Yields changes of a request as `(kind, text, request)`, the gentlest first."""
    yield from _of_job(request)
    yield from _of_mesh(request)
    yield from _of_target(request)
    yield from _combined(request)
    yield from _smaller(request)


def _of_job(request: Request) -> Iterator[tuple[str, str, Request]]:
    for kind, text, job in request.job.changes(request.mesh):
        yield kind, text, request.replace(job=job)


def _of_mesh(request: Request) -> Iterator[tuple[str, str, Request]]:
    """Yields meshes that split more of a device's memory: parameters first, then sequences."""
    for source, goal in (("data", "fsdp"), ("data", "seq"), ("fsdp", "seq"), ("data", "model")):
        factor = 2
        while request.mesh[source] % factor == 0:
            mesh = {**request.mesh}
            mesh[source] //= factor
            mesh[goal] *= factor
            yield f"mesh {goal}", f"--mesh {_text(mesh)}", request.replace(mesh=mesh)
            factor *= 2


def _of_target(request: Request) -> Iterator[tuple[str, str, Request]]:
    """Yields larger targets of the same generation, with the batch or the sequences split more."""
    family = request.target.device.name
    every = [targets.find(name) for name in targets.names()]
    larger = [t for t in every if t.device.name == family and t.devices > request.target.devices]
    for target in larger:
        factor = target.devices // request.target.devices
        if target.devices % request.target.devices:
            continue
        for axis in ("fsdp", "seq"):
            mesh = {**request.mesh, axis: request.mesh[axis] * factor}
            if request.job.takes(mesh):
                text = f"--target {target.name} --mesh {_text(mesh)}"
                yield "target", text, request.replace(target=target, mesh=mesh)
                break


def _combined(request: Request) -> Iterator[tuple[str, str, Request]]:
    """Yields all changes of the job together, one kind more at a time."""
    job, texts, kinds = request.job, [], []
    while following := [
        (kind, text, other) for kind, text, other in job.changes(request.mesh) if kind not in kinds
    ]:
        kind = following[0][0]
        _, text, job = [x for x in following if x[0] == kind][-1]
        kinds.append(kind)
        texts.append(text)
        if len(kinds) > 1:
            yield TOGETHER, " ".join(texts), request.replace(job=job)


def _smaller(request: Request) -> Iterator[tuple[str, str, Request]]:
    for axis in ("batch", "sequence"):
        step = request.job.granule(axis, request.mesh)
        try:
            size = request.job.size(axis) // 2 // step * step
        except ValueError:  # the data of a training run decide how long its sequences are
            continue
        while size >= step:
            job = request.job.resized(axis, size)
            yield axis, job.option(axis), request.replace(job=job)
            size = size // 2 // step * step


def _text(mesh: Mapping[str, int]) -> str:
    return ",".join(f"{name}={size}" for name, size in mesh.items() if size > 1) or "fsdp=1"
