"""Maps of attention weights on sequences of any length, exact and without a T-by-S array.

Weights are described by queries, keys and the logsumexp of a call, and recomputed tile by tile.
"""

from attnjax.focus.maps.edges import Edges, TopEdges, top_edges
from attnjax.focus.maps.importance import ablation_importance, gradient_importance
from attnjax.focus.maps.lines import columns, rows
from attnjax.focus.maps.readings import look
from attnjax.focus.maps.rollout import flow, rollout, rollout_rows, rollout_step
from attnjax.focus.maps.sums import Gathered, Pooled, Received, pooled, received
from attnjax.focus.maps.weights import Weights, additive_weights, by_gradient, by_values, weights

__all__ = [
    "Edges",
    "Gathered",
    "Pooled",
    "Received",
    "TopEdges",
    "Weights",
    "ablation_importance",
    "additive_weights",
    "by_gradient",
    "by_values",
    "columns",
    "flow",
    "gradient_importance",
    "look",
    "pooled",
    "received",
    "rollout",
    "rollout_rows",
    "rollout_step",
    "rows",
    "top_edges",
    "weights",
]
