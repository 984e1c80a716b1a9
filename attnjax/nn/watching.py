"""The hook by which attention modules show what they do to whoever watches them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from flax import nnx
from jaxtyping import Array, Float

from attnjax.api import attention
from attnjax.masks import Mask, as_mask
from attnjax.ops.softmax.stats import AttentionStats


class Looked(nnx.Variable[Array]):
    """What an observer has kept of the calls of one attention module; not a parameter."""


class Seen(NamedTuple):
    """One call of an attention module.

    Attributes:
      q: queries.
      k: keys.
      mask: which query may see which key.
      sinks: whether a learned sink takes part in the softmax.
      attend: `(q, k, v) -> (out, statistics)`: the call without dropout, for any values.
      out: what the heads gave in the call itself.
      kernel: the output projection; None if there is none.
    """

    q: Float[Array, "B T N H"]
    k: Float[Array, "B S K H"]
    mask: Mask
    sinks: bool
    attend: Callable[[Array, Array, Array], tuple[Array, AttentionStats]]
    out: Float[Array, "B T N D"]
    kernel: Float[Array, "N D O"] | None


class Observer(Protocol):
    """Adds calls to what it keeps. It is compared and hashed, like every static attribute."""

    def empty(self, num_heads: int) -> Array:
        """Returns what is kept before the first call of a module with so many heads."""
        ...

    def add(self, kept: Array, seen: Seen) -> Array:
        """Returns what is kept after one more call."""
        ...


class Watchable(nnx.Module):
    """Base of modules that can be watched; `attnjax.focus.watch` sets the two attributes."""

    num_heads: int
    observer: Observer | None = None
    looked: Looked | None = None

    def _show(self, seen: Callable[[], Seen]) -> None:
        """Shows a call to the observer, if there is one."""
        if self.observer is not None and self.looked is not None:
            self.looked[...] = self.observer.add(self.looked[...], seen())


def seen_attention(
    q: Array, k: Array, out: Array, kernel: Array | None, arguments: Mapping[str, Any]
) -> Seen:
    """Returns what an observer sees of a call of `attnjax.attention`.

    Args:
      q: queries `[B, T, N, H]`.
      k: keys `[B, S, K, H]`.
      out: what the call returned `[B, T, N, D]`.
      kernel: the output projection `[N, D, O]`, or None.
      arguments: of the call, by name, but for dropout and stats.
    """

    def attend(q: Array, k: Array, v: Array) -> tuple[Array, AttentionStats]:
        found: tuple[Array, AttentionStats] = attention(q, k, v, stats=True, **arguments)
        return found

    mask, sinks = as_mask(arguments["mask"]), arguments.get("sinks") is not None
    return Seen(q, k, mask, sinks, attend, out, kernel)
