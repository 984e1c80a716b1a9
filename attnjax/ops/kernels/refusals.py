"""What all TPU kernels refuse alike."""

from typing import Any

import jax


def need_precision(precision: Any, otherwise: str) -> None:
    """Refuses a precision of matrix products that the kernels do not have.

    Args:
      precision: a `jax.lax.Precision`, or None.
      otherwise: the implementation to use instead.

    Raises:
      NotImplementedError: with the reason and the remedy.
    """
    known = (None, jax.lax.Precision.DEFAULT, jax.lax.Precision.HIGHEST)
    if precision not in known:
        raise NotImplementedError(
            f"precision={precision!r}: a TPU kernel multiplies by default or in full float32. "
            f"Pass precision=None, 'default' or 'highest', or implementation={otherwise!r}."
        )
