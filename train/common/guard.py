"""Stops a run whose numbers are no longer finite, and says where that began."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from train.common.optim import dotted
from train.common.task import Batch


class NonFiniteError(RuntimeError):
    """The loss, a gradient, a parameter or a metric became NaN or infinite."""


def check_finite(step: int, metrics: dict[str, Any], params: Any, batch: Batch) -> None:
    """Raises if anything that a training step reports is not finite.

    Args:
        step: the number of the step, from 1.
        metrics: what the step returned, fetched to the host.
        params: the parameters, or anything of their tree structure; only the paths are used.
        batch: the batch the step was given, to tell bad input from a bad model.

    Raises:
        NonFiniteError: names the step, the first bad gradient's and parameter's path, and input
            arrays that are not finite themselves.
    """
    if all(np.all(np.isfinite(x)) for x in metrics.values()):
        return
    paths = [dotted(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    lines = [f"step {step}: the numbers are no longer finite (loss {float(metrics['loss'])})."]
    for name, what in (("grad_squares", "gradients"), ("param_squares", "updated parameters")):
        bad = [path for path, x in zip(paths, metrics[name], strict=True) if not np.isfinite(x)]
        if bad:
            lines.append(f"First of {len(bad)} of {len(paths)} bad {what}: {bad[0]}.")
        else:
            lines.append(f"All {what} are finite.")
    named = sorted(k for k, x in metrics.items() if np.ndim(x) == 0 and not np.isfinite(x))
    lines.append(f"Not finite among the metrics: {', '.join(named) or 'none'}.")
    inputs = sorted(
        name
        for name, x in batch.items()
        if np.issubdtype(np.asarray(x).dtype, np.inexact) and not np.all(np.isfinite(x))
    )
    if inputs:
        lines.append(f"The batch itself is not finite in: {', '.join(inputs)}.")
    lines.append(
        "No checkpoint was made of this state. The same command would meet the same step again: "
        "lower the learning rate or clip_norm, or mend the data, in a new run directory."
    )
    raise NonFiniteError(" ".join(lines))
