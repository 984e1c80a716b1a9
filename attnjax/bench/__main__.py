"""Repeatable measurements of attention beside its peers.

    python -m attnjax.bench cpu                       # also: gpu, tpu; on the device at hand
    python -m attnjax.bench tpu-static gpu-static     # what compilers say; no device needed
    python -m attnjax.bench focus                     # what warns of runs that break
    python -m attnjax.bench gpu --case causal --direction fwd --rounds 20
    python -m attnjax.bench --compare before/gpu.json after/gpu.json

Everyone does the same work: the numbers of each contestant are compared with the right ones before
any timing, runs are interleaved, and medians count. Who is not here, can't do a case, or ran out of
time is listed with the reason. A suite writes SUITE.json, SUITE.md and SUITE.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax

from attnjax.bench import cases, compare, report
from attnjax.bench.contestants import roster
from attnjax.bench.fingerprint import fingerprint
from attnjax.bench.focus import study, writing
from attnjax.bench.static import suites as static_suites
from attnjax.bench.static.tpu import TARGETS
from attnjax.bench.suites import SUITES, Suite, measure
from attnjax.bench.timing import disturbed


def main(argv: Sequence[str] | None = None) -> int:
    """Runs suites, or compares two results."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.compare:
        try:
            before, after = (report.read(pathlib.Path(x)) for x in arguments.compare)
            print("\n".join(compare.compare(before, after)))
        except (OSError, ValueError) as error:
            parser.error(str(error))
        return 0
    if not arguments.suites:
        parser.error(f"expected a suite, {', '.join(_suites())}, or --compare A.json B.json")
    if unknown := [x for x in arguments.suites if x not in _suites()]:
        parser.error(f"expected suites of {', '.join(_suites())}; got {', '.join(unknown)}")
    if len(arguments.suites) > 1 and {"gpu", "tpu"} & {*arguments.suites}:
        parser.error("expected gpu or tpu by itself, for the other suites keep JAX on the CPU")
    if unknown := [x for x in arguments.target or () if x not in TARGETS]:
        parser.error(f"expected targets of {', '.join(TARGETS)}; got {', '.join(unknown)}")
    for name in arguments.suites:
        if name == "focus":
            _focus(parser, arguments)
            continue
        found = _measured(parser, name, arguments) if name in SUITES else _static(name, arguments)
        result = {"suite": name, "fingerprint": fingerprint(), **found}
        for said in report.write(result, pathlib.Path(arguments.out)):
            print(said, flush=True)
    return 0


def _suites() -> list[str]:
    return [*SUITES, *static_suites.SUITES, "focus"]


def _focus(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    jax.config.update("jax_platforms", "cpu")
    base = study.QUICK if arguments.quick else study.Study()
    try:
        chosen = dataclasses.replace(
            base,
            tasks=tuple(arguments.task or base.tasks),
            treatments=tuple(arguments.treatment or ()) or base.treatments,
            seeds=tuple(arguments.seeds or base.seeds),
            steps=arguments.steps or base.steps,
            warm_up=arguments.warm_up or base.warm_up,
        )
    except ValueError as error:
        parser.error(str(error))
    about = {"suite": "focus", "fingerprint": fingerprint()}
    said: list[str] = []
    # Written after each treatment, so that what is done is kept when the rest is broken off.
    for found in study.measure(chosen, log=lambda text: print(text, flush=True)):
        said = writing.write({**about, **found}, pathlib.Path(arguments.out))
    print("\n".join(said), flush=True)


def _measured(
    parser: argparse.ArgumentParser, name: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    # JAX would take most of a GPU's memory at its first use, and leave none to torch.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if name == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if (here := jax.default_backend()) != name:
        parser.error(f"the suite {name} needs a {name.upper()}; jax found {here}: {jax.devices()}")
    suite = _changed(SUITES[name], arguments)
    chosen = roster()
    if arguments.contestant:
        names = [x.name for x in chosen]
        if unknown := sorted(set(arguments.contestant) - set(names)):
            parser.error(f"expected contestants of {', '.join(names)}; got {', '.join(unknown)}")
        chosen = [x for x in chosen if x.name in arguments.contestant]
    result = measure(
        suite,
        names=arguments.case or cases.NAMES,
        directions=arguments.direction or cases.DIRECTIONS,
        contestants=chosen,
        log=lambda text: print(text, flush=True),
    )
    return {"settings": dataclasses.asdict(suite), **result}


def _static(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    jax.config.update("jax_platforms", "cpu")
    return static_suites.SUITES[name](
        names=arguments.case,
        directions=arguments.direction or cases.DIRECTIONS,
        length=arguments.length,
        heads=arguments.heads,
        width=arguments.width,
        targets=arguments.target,
        contestants=arguments.contestant,
        log=lambda text: print(text, flush=True),
    )


def _changed(suite: Suite, arguments: argparse.Namespace) -> Suite:
    """Returns a suite with what the command line changes in it."""
    asked = {
        "T": arguments.length,
        "N": arguments.heads,
        "H": arguments.width,
        "B": arguments.batch,
    }
    shape = dataclasses.replace(
        suite.shape, **{axis: size for axis, size in asked.items() if size is not None}
    )
    given = {"limit": arguments.limit, "rounds": arguments.rounds, "matrix": arguments.matrix}
    return dataclasses.replace(
        suite, shape=shape, **{name: x for name, x in given.items() if x is not None}
    )


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1; got {number}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m attnjax.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(_suites()))
    parser.add_argument("--compare", nargs=2, metavar="JSON", help="set two results side by side")
    parser.add_argument("--out", default="runs/bench", help="folder of the reports")
    parser.add_argument("--case", action="append", choices=cases.NAMES, help="may be repeated")
    parser.add_argument("--direction", action="append", choices=cases.DIRECTIONS)
    parser.add_argument("--contestant", action="append", metavar="NAME", help="may be repeated")
    parser.add_argument("--batch", type=_positive, help="B, instead of the suite's own")
    parser.add_argument("--length", type=_positive, help="T, instead of the suite's own")
    parser.add_argument("--heads", type=_positive, help="N, instead of the suite's own")
    parser.add_argument("--width", type=_positive, help="H, instead of the suite's own")
    parser.add_argument("--matrix", type=_positive, help="side of the matrices of the rate")
    parser.add_argument("--limit", type=float, help="seconds that a measured suite may take")
    parser.add_argument("--rounds", type=_positive, help="samples of each contestant")
    parser.add_argument("--target", action="append", help="chips of tpu-static: v5e, v6e, ...")
    parser.add_argument("--quick", action="store_true", help="focus: only see that it runs")
    parser.add_argument("--task", action="append", metavar="NAME", help="of focus; may be repeated")
    parser.add_argument("--treatment", action="append", metavar="NAME", help="likewise")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="of focus")
    parser.add_argument("--steps", type=_positive, help="of focus: of each run")
    parser.add_argument("--warm-up", type=_positive, help="of focus: steps in which the rate rises")
    return parser


if __name__ == "__main__":
    code = main()
    if disturbed():
        # What ran out of time may be deep in a compiler, which takes the end of Python badly.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
