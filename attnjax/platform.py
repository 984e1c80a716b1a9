"""The platform that kernels are chosen and built for: the one at hand, or another on request."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import jax

_NAMES = ("cpu", "gpu", "tpu")


class Platform(NamedTuple):
    """What kernels are chosen and built for.

    Attributes:
      name: `cpu`, `gpu` or `tpu`.
      interpret: whether kernels run in Pallas' interpreter, on whatever device there is.
      here: whether it is the platform at hand.
    """

    name: str
    interpret: bool
    here: bool


_chosen: contextvars.ContextVar[Platform | None] = contextvars.ContextVar("platform", default=None)


def platform() -> Platform:
    """Returns the platform that kernels are chosen for at this moment."""
    return _chosen.get() or Platform(jax.default_backend(), False, True)


@contextlib.contextmanager
def emulate(name: str, *, interpret: bool = True) -> Iterator[None]:
    """Chooses and builds kernels as on another platform, while the context lasts.

    It holds where a call is traced: put it around the first call of a jitted function, or inside
    the function.

    Args:
      name: `cpu`, `gpu` or `tpu`.
      interpret: run kernels in Pallas' interpreter: right numbers on any device, slowly. False
        builds the real kernels, which can be compiled ahead for a device that is not here
        (`jax.jit(f).lower(...).compile()` over a topology) but not run.

    Yields:
      Nothing.

    Raises:
      ValueError: for an unknown name.
    """
    if name not in _NAMES:
        raise ValueError(f"emulate: expected one of {', '.join(_NAMES)}; got {name!r}.")
    token = _chosen.set(Platform(name, interpret, False))
    try:
        yield
    finally:
        _chosen.reset(token)


def need_tpu(otherwise: str) -> None:
    """Refuses to go on where kernels for a TPU cannot run.

    Args:
      otherwise: the implementation to use instead.

    Raises:
      NotImplementedError: unless kernels are chosen for a TPU; it says how to run them here.
    """
    here = platform()
    if here.name != "tpu":
        raise NotImplementedError(
            f"the TPU kernels need a TPU, and jax runs on the {here.name}. Run them where "
            "jax.default_backend() is 'tpu'; or within `attnjax.emulate('tpu')`, which runs the "
            "same kernels in Pallas' interpreter: right numbers, slowly; or pass "
            f"implementation={otherwise!r}."
        )
