"""A contestant made ready to run one direction of one case."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Compiled work.

    Attributes:
      run: starts it once; may return before it is done.
      wait: waits for what `run` returned.
      results: runs it once and returns `out`, and `dq`, `dk`, `dv` where gradients are computed,
        as float32 `[B, T, N, H]`.
      temporaries: bytes that it allots besides its inputs and outputs, where they are known.
      note: what to add to its name, as the implementation that was chosen.
    """

    run: Callable[[], Any]
    wait: Callable[[Any], Any]
    results: Callable[[], dict[str, np.ndarray]]
    temporaries: int | None = None
    note: str = ""
