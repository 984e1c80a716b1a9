"""Command lines: a config class in, an exit status out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from train.common import distributed
from train.common.extras import MissingExtraError
from train.common.guard import NonFiniteError
from train.common.seal import BrokenCheckpointError
from train.common.signals import Interrupted

Config = TypeVar("Config")

DONE, WRONG_USE, NOT_FINITE, BROKEN = 0, 2, 3, 4
_ANSWERS = (
    ValueError,
    NotImplementedError,
    FileNotFoundError,
    NotADirectoryError,
    PermissionError,
    ConnectionError,
    MissingExtraError,
)
EXIT_CODES = """exit status:
  0        done, or was already
  2        the command line, the config, the data or the run directory is wrong
  3        the numbers became NaN or infinite
  4        no checkpoint of the run directory can be read
  75, 134  of several processes: a bug, or another process ended or fell silent (134: jax's
           abort); start all of them again to go on
  128 + n  stopped by signal n (143: SIGTERM, 130: SIGINT) after saving; run it again to go on"""


def parse(
    config_class: type[Config], argv: Sequence[str] | None = None, *, description: str = ""
) -> Config:
    """Reads a (nested, frozen) dataclass from a command line.

    Args:
        config_class: fields with a docstring under each become options.
        argv: the arguments without the program's name; `sys.argv[1:]` by default.
        description: printed by `--help`, above the exit codes.

    Raises:
        SystemExit: with status 2 for a wrong option, 0 after `--help`.
        ValueError: the config's own checks refuse a value.
    """
    text = f"{description.strip()}\n\n{EXIT_CODES}"
    return tyro.cli(config_class, args=argv, description=text)


def guarded(main: Callable[[], object]) -> int:
    """Runs `main` and turns what it raises into an exit status and one message on stderr.

    Only errors that are an answer to the user lose their traceback; a bug keeps it. Where other
    processes train along, an error ends this one at once instead of returning.

    Args:
        main: the entrypoint's work.

    Returns:
        The exit status; `EXIT_CODES` lists them.
    """
    try:
        main()
    except Interrupted as error:
        return _fail(error, 128 + error.signum)
    except KeyboardInterrupt:
        return distributed.leave(130)
    except NonFiniteError as error:
        return distributed.leave(_fail(error, NOT_FINITE))
    except BrokenCheckpointError as error:
        return distributed.leave(_fail(error, BROKEN))
    except _ANSWERS as error:
        if distributed.is_lost(error):
            raise
        return distributed.leave(_fail(error, WRONG_USE))
    return DONE


def _fail(error: Exception, status: int) -> int:
    label = "" if isinstance(error, Interrupted) else "error: "
    print(f"{label}{error}", file=sys.stderr, flush=True)
    return status
