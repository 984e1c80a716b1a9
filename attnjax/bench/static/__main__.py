"""Profiles attention kernels for a TPU that is not here; see `tpu.py` for what is counted.

python -m attnjax.bench.static --target v6e --case causal --peer splash --direction fwd
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from attnjax.bench.static import contestants, tpu


def main(argv: Sequence[str] | None = None) -> int:
    """Profiles one library's kernels on one case; prints one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", choices=tpu.TARGETS, default="v6e")
    parser.add_argument("--case", choices=contestants.CASES, default="causal")
    parser.add_argument("--peer", choices=contestants.MAKERS, default="ours")
    parser.add_argument("--direction", choices=contestants.DIRECTIONS, default="fwd")
    parser.add_argument("--length", type=int, default=8192, help="T and S")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--width", type=int, default=128, help="H and D")
    parser.add_argument("--stats", action="store_true", help="with statistics; ours only")
    parser.add_argument("--blocks", help="64x128 for one block size, in place of all sensible ones")
    parser.add_argument("--keep", help="folder in which to leave the compiler's listings")
    arguments = parser.parse_args(argv)
    best, tried = contestants.best(
        arguments.peer,
        arguments.target,
        case=arguments.case,
        direction=arguments.direction,
        length=arguments.length,
        heads=arguments.heads,
        width=arguments.width,
        stats=arguments.stats,
        blocks=arguments.blocks,
        keep=arguments.keep,
    )
    answer = {
        "peer": arguments.peer,
        "target": arguments.target,
        "case": arguments.case,
        "direction": arguments.direction,
        "cycles": sum(kernel.cycles for _, kernel in best),
        "kernels": [
            {**dataclasses.asdict(kernel), "inner_spills": kernel.inner_spills, "options": options}
            for options, kernel in best
        ],
        "failed": [{**x.job.options, "error": x.error} for x in tried if x.error is not None],
    }
    print(json.dumps(answer))
    return 0 if best else 1


if __name__ == "__main__":
    sys.exit(main())
