"""What an attention call tells about where it looked."""

from typing import NamedTuple

from jaxtyping import Array, Float


class AttentionStats(NamedTuple):
    """Statistics of the softmax weights, in float32, from the same pass as the output.

    The weights are those before dropout. With learned sinks, the softmax runs over the keys and
    the sink. A row with nothing to attend to has logsumexp and max_logit minus infinity and 0
    elsewhere. `logsumexp` and `entropy` are differentiable; gradients stop at the others.

    Attributes:
      logsumexp: log of the softmax denominator, the sink's share included, `[B, N, T]`.
      max_logit: largest score of the keys, after score_mods, `[B, N, T]`.
      entropy: entropy of the weights in nats, the sink's included, `[B, N, T]`:
        `logsumexp - sum(weight * score)`.
      sink_mass: weight on key 0, `[B, N, T]`.
      distance: sum of `weight * |q_idx - k_idx|`, in positions, `[B, N, T]`; a learned sink counts
        as distance 0.
    """

    logsumexp: Float[Array, "B N T"]
    max_logit: Float[Array, "B N T"]
    entropy: Float[Array, "B N T"]
    sink_mass: Float[Array, "B N T"]
    distance: Float[Array, "B N T"]
