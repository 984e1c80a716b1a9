"""What every classification task shares: class weights, loss and metrics."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from jaxtyping import Array, Float, Int


def balanced_weights(counts: np.ndarray) -> np.ndarray:
    """Weights that give every class the same share of the loss, with mean 1 over the examples.

    Args:
        counts: training examples per class, `[C]`.

    Returns:
        float32 `[C]`; 0 for a class without examples, which then neither gains nor loses.
    """
    present = counts > 0
    share = counts.sum() / (present.sum() * np.maximum(counts, 1))
    return np.where(present, share, 0).astype(np.float32)


def cross_entropy(
    logits: Float[Array, "B C"],
    label: Int[Array, "B"],
    *,
    class_weights: np.ndarray | None = None,
    smoothing: float = 0.0,
) -> Float[Array, "B"]:
    """Cross-entropy of each example.

    Args:
        logits: unnormalised log-probabilities.
        label: the right classes.
        class_weights: factor on the loss by the right class, `[C]`; None for ones.
        smoothing: share of the target spread evenly over all classes (Szegedy et al., 2016).
    """
    target = optax.smooth_labels(jax.nn.one_hot(label, logits.shape[-1]), smoothing)
    loss = optax.softmax_cross_entropy(logits.astype(jnp.float32), target)
    return loss if class_weights is None else loss * jnp.asarray(class_weights)[label]


@dataclass(frozen=True)
class Scores:
    """Metrics of predicted classes on one split."""

    accuracy: float
    macro_f1: float
    """The plain mean of the classes' F1; classes that occur neither as label nor prediction
    are left out."""
    confusion: np.ndarray
    """int64 `[C, C]`; rows are the right classes, columns the predicted ones."""

    @classmethod
    def of(cls, label: npt.ArrayLike, predicted: npt.ArrayLike, classes: int) -> Scores:
        """Compares predictions with the right classes, both `[n]`."""
        # Imported late, like all of scikit-learn here: a wrong command line should not wait for it.
        from sklearn.metrics import confusion_matrix, f1_score

        label, predicted = np.asarray(label), np.asarray(predicted)
        return cls(
            accuracy=float(np.mean(label == predicted)),
            macro_f1=float(f1_score(label, predicted, average="macro")),
            confusion=confusion_matrix(label, predicted, labels=np.arange(classes)),
        )
