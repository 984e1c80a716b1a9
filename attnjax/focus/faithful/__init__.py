"""Is an explanation true: deletion and insertion, agreement with gradients, random weights."""

from attnjax.focus.faithful.attention import WeightedPooling, pooling_attention
from attnjax.focus.faithful.attributions import (
    EmbeddedScore,
    IntegratedGradients,
    integrated_gradients,
    leave_one_out,
)
from attnjax.focus.faithful.curves import (
    Curve,
    RandomCurves,
    Score,
    deletion_curve,
    insertion_curve,
    random_curves,
)
from attnjax.focus.faithful.intervals import bootstrap_interval
from attnjax.focus.faithful.ranks import kendall, spearman
from attnjax.focus.faithful.received import Received, received_attention
from attnjax.focus.faithful.sanity import random_weights, reinitialised
from attnjax.focus.faithful.summary import Faithfulness

__all__ = [
    "Curve",
    "EmbeddedScore",
    "Faithfulness",
    "IntegratedGradients",
    "RandomCurves",
    "Received",
    "Score",
    "WeightedPooling",
    "bootstrap_interval",
    "deletion_curve",
    "insertion_curve",
    "integrated_gradients",
    "kendall",
    "leave_one_out",
    "pooling_attention",
    "random_curves",
    "random_weights",
    "received_attention",
    "reinitialised",
    "spearman",
]
