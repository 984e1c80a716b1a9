"""Which part of a mask follows from positions and single numbers, and which part reads arrays.

Where all that reads arrays allows a whole block, the rest alone decides on it: on a causal block
inside one document, say.
"""

from __future__ import annotations

from attnjax.masks import And, Mask, Where, walk
from attnjax.ops.kernels.programs import Part, part


def split(mask: Mask) -> tuple[Mask, Mask] | None:
    """Splits a mask into two that both have to allow a score.

    Args:
      mask: the mask.

    Returns:
      What a kernel computes from positions and numbers alone, and what may read more; or None
      where one of the two would be missing.
    """
    positional, rest = _gather(mask)
    return None if positional is None or rest is None else (positional, rest)


def reordered(mask: Mask) -> Mask:
    """Returns an equal mask, in which what follows from positions comes first."""
    parts = split(mask)
    return mask if parts is None else And(*parts)


def _gather(mask: Mask) -> tuple[Mask | None, Mask | None]:
    if isinstance(mask, And):
        sides = zip(_gather(mask.left), _gather(mask.right), strict=True)
        first, second = (_both(left, right) for left, right in sides)
        return first, second
    return (mask, None) if _is_positional(mask) else (None, mask)


def _both(left: Mask | None, right: Mask | None) -> Mask | None:
    if left is None or right is None:
        return right if left is None else left
    return And(left, right)


def _is_positional(mask: Mask) -> bool:
    # A function of the caller's may look arrays up that it captured.
    return not any(isinstance(leaf, Where) for leaf in walk(mask)) and all(
        part(operand) is Part.SCALAR for operand in mask.operands()
    )
