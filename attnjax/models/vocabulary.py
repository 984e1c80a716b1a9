"""From tokens to vectors and from vectors to logits."""

from __future__ import annotations

from typing import Any, Protocol

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax.nn import SigmaLinear


class Width(Protocol):
    """What a config says about the vectors that its module takes and gives."""

    @property
    def features(self) -> int: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def param_dtype(self) -> Any: ...


def check_vocabulary(name: str, size: int) -> None:
    """Raises ValueError unless a vocabulary has at least one token."""
    if size < 1:
        raise ValueError(f"{name}: expected at least 1 token, got {size}.")


def check_tokens(name: str, tokens: Any) -> None:
    """Raises ValueError unless `tokens` are integers `[batch, time]`."""
    if not hasattr(tokens, "dtype") or not jnp.issubdtype(tokens.dtype, jnp.integer):
        got = getattr(tokens, "dtype", type(tokens).__name__)
        raise ValueError(f"{name}: expected an integer array [batch, time], got {got}.")
    if len(tokens.shape) != 2:
        raise ValueError(
            f"{name}: expected an integer array [batch, time], got shape {tuple(tokens.shape)}."
        )


def build_embedding(vocabulary: int, config: Width, *, rngs: nnx.Rngs) -> nnx.Embed:
    """Returns a table of token vectors, for a stack of that config."""
    return nnx.Embed(
        vocabulary, config.features, dtype=config.dtype, param_dtype=config.param_dtype, rngs=rngs
    )


def build_output(vocabulary: int, config: Width, *, rngs: nnx.Rngs) -> nnx.Linear:
    """Returns an output matrix of its own, for what is not tied to an embedding."""
    return nnx.Linear(
        config.features,
        vocabulary,
        use_bias=False,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        rngs=rngs,
    )


def embed(
    table: nnx.Embed, tokens: Int[Array, "B T"], scale: float | None
) -> Float[Array, "B T F"]:
    """Looks tokens up.

    Args:
      table: token vectors.
      tokens: what to look up; the vector of a token beyond the vocabulary is NaN.
      scale: factor on the vectors; None for none.
    """
    x = table(tokens)
    return x if scale is None else x * jnp.asarray(scale, x.dtype)


def project(
    hidden: Float[Array, "*B F"], output: nnx.Embed | nnx.Linear, precision: Any = None
) -> Float[Array, "*B V"]:
    """Computes logits.

    Args:
      hidden: what the last layer made.
      output: the output matrix, or the embedding that it is tied to.
      precision: of the product.

    Returns:
      float32, summed in float32 whatever the dtype of the factors.

    Raises:
      NotImplementedError: if the output matrix is sigma-reparametrised.
    """
    if isinstance(output, SigmaLinear):
        raise NotImplementedError(
            "output: parts of a vocabulary are computed from the kernel itself, which cannot be "
            "sigma-reparametrised; leave it out of sigma_reparam's `where`, or fold it."
        )
    tied = isinstance(output, nnx.Embed)
    matrix: Array = (output.embedding if isinstance(output, nnx.Embed) else output.kernel)[...]
    return jnp.einsum(
        "...f,vf->...v" if tied else "...f,fv->...v",
        hidden,
        matrix.astype(hidden.dtype),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
