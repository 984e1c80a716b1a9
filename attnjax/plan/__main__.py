r"""What a step would need and cost on a machine that is not here.

    python -m attnjax.plan --target v5p-512 --model lm-1.3b --batch 64 --sequence 32768 \
        --mesh fsdp=64,seq=4
    python -m attnjax.plan --target v5e-16 --attention 8,32768,16,4,128 --mask causal --mesh seq=16
    python -m attnjax.plan --target v5e-16 -- train.text_classification --mesh data=4,fsdp=4

Compiles the real sharded step with the target's own compiler, on this machine and without a device,
and reports the memory of each device, the collectives, and what a step would take at the peaks of
the data sheet. Where it does not fit, it says by how much, and compiles changes until it knows some
that make it fit.

Exit status: 0 it fits, 1 it does not, 2 wrong use or a missing compiler.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, get_args

import jax

from attnjax.plan import report, searching, targets
from attnjax.plan.attention_call import AttentionCall, parse_shape
from attnjax.plan.language_model import MODELS, Remat
from attnjax.plan.language_training import Training
from attnjax.plan.planning import Request, make_plan
from attnjax.plan.training_run import TrainingRun
from attnjax.plan.workload import Job
from attnjax.sharding.laying import mesh_sizes
from attnjax.sharding.partition import Method

FITS, TOO_LARGE, WRONG_USE = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Plans what the command line asks for; returns the exit status."""
    parser = _parser()
    given, command = _split(list(sys.argv[1:] if argv is None else argv))
    arguments = parser.parse_args(given)
    # Only compilers for other machines are used; whatever is here stays untouched.
    jax.config.update("jax_platforms", "cpu")
    try:
        return _run(arguments, command)
    except (ValueError, NotImplementedError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_USE


def _run(arguments: argparse.Namespace, command: list[str]) -> int:
    target = targets.find(arguments.target)
    job, mesh = _job(arguments, command)
    sizes = mesh_sizes(arguments.mesh or mesh or "fsdp=-1", target.devices)
    plan = make_plan(Request(target, sizes, job, dict(arguments.xla)))
    print(report.text(plan), flush=True)
    answer = report.as_dict(plan)
    if not plan.fits and arguments.compiles:
        changes, tried = searching.fixes(plan, compiles=arguments.compiles, say=_say)
        print("\n" + report.changes_text(changes, tried), flush=True)
        answer["changes"] = [
            {"change": change.text, **report.as_dict(change.plan)} for change in changes
        ]
    for axis in arguments.largest:
        found = searching.largest(plan, axis, compiles=max(arguments.compiles, 1), say=_say)
        print("\n" + report.largest_text(found), flush=True)
        answer.setdefault("largest", {})[axis] = {
            "fits": found.fits,
            "too_large": found.too_large,
            "tried": found.tried,
        }
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(answer, indent=1) + "\n")
    if arguments.plot is not None:
        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        try:
            report.plot(plan, arguments.plot)
        except ModuleNotFoundError as error:
            print(f"no plot, for {error.name} is missing: pip install 'attnjax[train]'")
    return FITS if plan.fits else TOO_LARGE


def _job(arguments: argparse.Namespace, command: list[str]) -> tuple[Job, str | None]:
    """Returns what is asked for, and the mesh that it brings along."""
    asked = [arguments.model is not None, arguments.attention is not None, bool(command)]
    if sum(asked) != 1:
        raise ValueError(
            "expected one of --model NAME, --attention B,T,N,K,H, or an entrypoint of train with "
            "its options behind --"
        )
    if command:
        run = TrainingRun.parse(command[0], command[1:])
        return run, run.mesh
    if arguments.attention is not None:
        call = AttentionCall(
            **parse_shape(arguments.attention),
            mask=arguments.mask,
            dtype=arguments.dtype,
            method=arguments.method,
            backward=not arguments.forward,
        )
        return call, None
    training = Training(
        model=arguments.model,
        batch=arguments.batch,
        sequence=arguments.sequence,
        remat=arguments.remat,
        accumulate=arguments.accumulate,
        moments=arguments.moments,
        method=arguments.method,
    )
    return training, None


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Splits a command line at `--`."""
    at = argv.index("--") if "--" in argv else len(argv)
    return argv[:at], argv[at + 1 :]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE; got {text!r}")
    return name, {"true": True, "false": False}.get(value.lower(), value)


def _count(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"expected at least 0; got {number}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m attnjax.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--target", required=True, help="such as v5e-16, v5p-512, tpu7x-8, h100x8")
    parser.add_argument("--mesh", help="such as data=2,fsdp=8,model=1,seq=4; fsdp=-1 by default")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write it as JSON")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE", help="also draw it")
    parser.add_argument(
        "--largest",
        action="append",
        choices=get_args(searching.Axis),
        default=[],
        help="find the largest that fits; may be repeated",
    )
    parser.add_argument(
        "--compiles",
        type=_count,
        default=12,
        help="most compilations of a search; 0: look for no changes that would make it fit",
    )
    parser.add_argument(
        "--xla",
        type=_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the compiler; may be repeated",
    )
    parser.add_argument("--method", choices=get_args(Method), default="ring")
    model = parser.add_argument_group("a language model's training step")
    model.add_argument("--model", choices=MODELS)
    model.add_argument("--batch", type=int, default=64, help="sequences in an update")
    model.add_argument("--sequence", type=int, default=4096, help="tokens in a sequence")
    model.add_argument("--remat", choices=get_args(Remat), default="full")
    model.add_argument("--accumulate", type=int, default=1, help="parts of a batch")
    model.add_argument("--moments", choices=("float32", "bfloat16"), default="float32")
    call = parser.add_argument_group("an attention call")
    call.add_argument("--attention", metavar="B,T,N,K,H", help="its sizes")
    call.add_argument("--mask", default="full", help="such as causal, or window:1023:0&strided:4")
    call.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    call.add_argument("--forward", action="store_true", help="without gradients")
    return parser


if __name__ == "__main__":
    sys.exit(main())
