"""Does the explanation depend on what the model has learned?

Source: Adebayo et al., "Sanity Checks for Saliency Maps" (2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from attnjax.focus.faithful.ranks import spearman

EVERYTHING = ""
"""The name of all parameters."""


def reinitialised(
    params: Any, fresh: Any, names: Sequence[str] = (EVERYTHING,)
) -> Iterator[tuple[str, Any]]:
    """Reinitialises parameters layer by layer, from the output to the input, say.

    Args:
      params: trained parameters, a pytree.
      fresh: parameters of the same model from another seed, a pytree of the same structure.
      names: dotted prefixes of the parameters to reinitialise, in this order, each in addition to
        those before it; "" is everything.

    Yields:
      Each name, and the parameters with it and all names before it reinitialised.

    Raises:
      ValueError: if the structures or shapes differ, or no parameter has such a name.
    """
    old = jax.tree_util.tree_leaves_with_path(params)
    new, treedef = jax.tree.leaves(fresh), cast(Any, jax.tree.structure(params))
    shapes = [np.shape(leaf) for _, leaf in old], [np.shape(leaf) for leaf in new]
    if jax.tree.structure(fresh) != treedef or shapes[0] != shapes[1]:
        raise ValueError("fresh: expected parameters of the same structure and shapes as params.")
    paths = [_dotted(path) for path, _ in old]
    leaves = [leaf for _, leaf in old]
    for name in names:
        chosen = [name in (EVERYTHING, path) or path.startswith(f"{name}.") for path in paths]
        if not any(chosen):
            raise ValueError(f"names: no parameter is called {name!r}; there are {paths}.")
        leaves = [b if c else a for a, b, c in zip(leaves, new, chosen, strict=True)]
        yield name, jax.tree.unflatten(treedef, leaves)


def random_weights(
    attribute: Callable[[Any], Mapping[str, npt.ArrayLike]],
    params: Any,
    fresh: Any,
    *,
    names: Sequence[str] = (EVERYTHING,),
    lengths: npt.ArrayLike | None = None,
) -> dict[str, dict[str, Float[np.ndarray, "B"]]]:
    """Compares explanations of a trained model with those of the model with random weights.

    An explanation that stays much the same says little about what the model has learned.

    Args:
      attribute: parameters to attributions `[B, T]` by method.
      params: trained parameters, a pytree.
      fresh: parameters of the same model from another seed.
      names: as in `reinitialised`.
      lengths: integers `[B]`, how many positions of each example there are; None is T for all.

    Returns:
      By name, then by method: Spearman's rank correlation of the attributions before and after,
      per example; NaN where it is not defined.

    Raises:
      ValueError: as `reinitialised` and `spearman`.
    """
    before = attribute(params)
    return {
        name: {
            method: spearman(before[method], after, lengths=lengths)
            for method, after in attribute(changed).items()
        }
        for name, changed in reinitialised(params, fresh, names)
    }


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(str(getattr(part, "key", getattr(part, "idx", part))) for part in path)
