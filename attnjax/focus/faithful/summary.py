"""How true the explanations of one method are, over many examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from attnjax.focus.faithful.intervals import bootstrap_interval


@dataclass(frozen=True)
class Faithfulness:
    """Means over examples of how true a method's explanations are."""

    examples: int
    """How many examples were measured."""
    deletion: float
    """Mean area under the deletion curve; lower is better."""
    deletion_random: float
    """The same for deletion at random."""
    margin: float
    """`deletion_random - deletion`; above 0 is better than random."""
    interval: tuple[float, float]
    """Confidence interval of the margin, by the bootstrap over examples."""
    insertion: float
    """Mean area under the insertion curve; higher is better."""
    insertion_random: float
    """The same for insertion at random."""
    agreement_gradients: float | None = None
    """Mean rank correlation with integrated gradients; None if not measured or not defined."""
    agreement_leave_one_out: float | None = None
    """Mean rank correlation with leave-one-out; None if not measured or not defined."""
    random_weights: float | None = None
    """Mean rank correlation with the explanations of the model with random weights: near 1, they
    say little about what the model has learned. None if not measured or not defined."""

    @classmethod
    def of(
        cls,
        *,
        deletion: npt.ArrayLike,
        deletion_random: npt.ArrayLike,
        insertion: npt.ArrayLike,
        insertion_random: npt.ArrayLike,
        agreement_gradients: npt.ArrayLike | None = None,
        agreement_leave_one_out: npt.ArrayLike | None = None,
        random_weights: npt.ArrayLike | None = None,
        level: float = 0.95,
        resamples: int = 10_000,
        seed: int = 0,
    ) -> Faithfulness:
        """Summarises measurements, each one number per example, `[B]`.

        Args:
          deletion: areas under the deletion curves.
          deletion_random: the same, at random.
          insertion: areas under the insertion curves.
          insertion_random: the same, at random.
          agreement_gradients: rank correlations with integrated gradients; NaN (an example in which
            all positions are alike, or just one) is left out of the mean.
          agreement_leave_one_out: rank correlations with leave-one-out, likewise.
          random_weights: rank correlations with the explanations of random weights, likewise.
          level: of the confidence interval.
          resamples: of the bootstrap.
          seed: of the bootstrap.

        Raises:
          ValueError: if shapes differ, or an area is not finite.
        """
        measured = {
            "deletion": deletion,
            "deletion_random": deletion_random,
            "insertion": insertion,
            "insertion_random": insertion_random,
        }
        areas = {name: np.asarray(values, np.float64) for name, values in measured.items()}
        shapes = {name: values.shape for name, values in areas.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"expected one number per example for each, got shapes {shapes}.")
        gain = areas["deletion_random"] - areas["deletion"]
        interval = bootstrap_interval(gain, level=level, resamples=resamples, seed=seed)
        return cls(
            examples=gain.size,
            **{name: float(values.mean()) for name, values in areas.items()},
            margin=float(gain.mean()),
            interval=interval,
            agreement_gradients=_mean(agreement_gradients),
            agreement_leave_one_out=_mean(agreement_leave_one_out),
            random_weights=_mean(random_weights),
        )

    def to_json(self) -> dict[str, Any]:
        """Returns what JSON can hold: numbers, the interval as a list of two, None for no value."""
        return {**vars(self), "interval": list(self.interval)}


def _mean(values: npt.ArrayLike | None) -> float | None:
    """The mean of what is defined; None if nothing is."""
    if values is None:
        return None
    found = np.asarray(values, np.float64)
    found = found[np.isfinite(found)]
    return float(found.mean()) if found.size else None
