"""Reports on watched runs.

    python -m attnjax.focus report RUN_DIR            # writes RUN_DIR/focus.html
    python -m attnjax.focus compare RUN_A RUN_B       # writes RUN_A/focus_against_RUN_B.html

Each is one HTML file that needs no network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from attnjax.focus.report import compare, report


def main(argv: Sequence[str] | None = None) -> int:
    """Writes a report, and says where; 0 if that went well, 2 if not."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "report":
            path = report(arguments.run_dir, arguments.out, force=arguments.force)
        else:
            path = compare(arguments.run_a, arguments.run_b, arguments.out, force=arguments.force)
    except (ImportError, OSError, ValueError) as error:
        print(f"attnjax.focus: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m attnjax.focus",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("report", help="a report on one run")
    one.add_argument("run_dir", metavar="RUN_DIR")
    two = commands.add_parser("compare", help="two runs side by side")
    two.add_argument("run_a", metavar="RUN_A")
    two.add_argument("run_b", metavar="RUN_B")
    for command in (one, two):
        command.add_argument("--out", metavar="FILE", help="where to write the page")
        command.add_argument(
            "--force", action="store_true", help="replace FILE even if it is no report of ours"
        )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
