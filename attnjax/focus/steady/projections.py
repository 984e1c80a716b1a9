"""Which heads a model has, and where the projections of their queries and keys are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from attnjax.focus.modules import attention_modules
from attnjax.nn import AttentionOptions, MultiHeadAttention, RelativeBias
from attnjax.nn.inputs import InputPositions
from attnjax.nn.sigma import SigmaLayer

PARTS = ("query.kernel", "query.bias", "key.kernel", "key.bias")
"""What of an attention module its logits are linear in."""
SIGMA_UNCLIPPABLE = (
    "sigma-reparametrisation divides its query or key kernel by a spectral norm that all heads "
    "share: scaling one head would scale the others. Gamma alone lets its logits grow. "
    "Leave this module out, build it without, or fold it (attnjax.focus.steady.fold_sigma)"
)


@dataclasses.dataclass(frozen=True)
class Heads:
    """The heads of one attention module, or of all the modules that a scan runs over.

    Attributes:
      num_heads: query heads N.
      num_kv_heads: key heads K.
      soft_cap: bound of the logits, as in `AttentionOptions`, or None.
      stack: dotted path of the scanned layers that the module is in, or None. Its parameters then
        have a first axis L, and layer 3 of the module `<stack>.attention` is also known as
        `<stack>.3.attention`.
      num_layers: L, or None.
      biased: whether relative biases are added to the logits, which the projections do not move.
    """

    num_heads: int
    num_kv_heads: int
    soft_cap: float | None = None
    stack: str | None = None
    num_layers: int | None = None
    biased: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what there is one of per head: `[N]`, or `[L, N]` of scanned layers."""
        layers = () if self.num_layers is None else (self.num_layers,)
        return (*layers, self.num_heads)

    def names(self, path: str) -> list[str]:
        """Returns the name of each layer's module: the path itself, or L numbered ones."""
        if self.stack is None:
            return [path]
        rest = path.removeprefix(self.stack)
        return [f"{self.stack}.{n}{rest}" for n in range(self.num_layers or 0)]


def all_heads(model: nnx.Module) -> dict[str, Heads]:
    """Returns the heads of every `MultiHeadAttention` of a model, by dotted path.

    Args:
      model: any module.
    """
    found = {}
    for name, module, layers in attention_modules(model):
        if isinstance(module, MultiHeadAttention):
            stack, scanned, rest = name.partition(".*")
            found[stack + rest] = Heads(
                num_heads=module.num_heads,
                num_kv_heads=module.num_kv_heads,
                soft_cap=module.options.soft_cap,
                stack=stack if scanned else None,
                num_layers=layers or None,
            )
    return found


def clippable(model: nnx.Module, *, biased: bool = False) -> dict[str, Heads]:
    """Returns the heads whose logits follow the scale of their projections, by dotted path.

    Args:
      model: any module.
      biased: take heads with relative biases, too. What is added is not scaled, so their logits
        come down towards a limit over several steps, by at most half in each, instead of to it in
        one. Biases that are themselves above the limit are not held: there the projections shrink
        until the biases are all that is left; a soft cap bounds both.

    Returns:
      What `qk_clip` takes, for every `MultiHeadAttention` of the model. Take some of its items to
      clip only these.

    Raises:
      ValueError: if there is none.
      NotImplementedError: if there is one whose logits do not follow the scale; names it, and says
        why and what to do.
    """
    found = all_heads(model)
    shared = [
        dotted(path[:-1])
        for path, module in nnx.iter_modules(model)
        if isinstance(module, InputPositions) and isinstance(module.scheme, RelativeBias)
    ]
    for at, module in nnx.iter_modules(model):
        if isinstance(module, MultiHeadAttention):
            path = dotted(at)
            added = any(not x or path.startswith(x + ".") for x in shared)
            added |= isinstance(module.options.position, RelativeBias)
            if (why := _unclippable(module, added and not biased)) is not None:
                raise NotImplementedError(f"{path}: QK-clip can't hold its logits, for {why}.")
            found[path] = dataclasses.replace(found[path], biased=added)
    if not found:
        raise ValueError(
            "clippable: expected a model with at least one MultiHeadAttention, got "
            f"{type(model).__name__} without any."
        )
    return found


def _unclippable(module: MultiHeadAttention, biased: bool) -> str | None:
    """Says why the scale of the projections does not move the logits, or None where it does."""
    options: AttentionOptions = module.options
    if isinstance(module.query, SigmaLayer) or isinstance(module.key, SigmaLayer):
        return SIGMA_UNCLIPPABLE
    if options.qk_norm is not None:
        return (
            f"qk_norm={options.qk_norm!r} takes the scale of queries and keys out again, and "
            "already bounds them. Leave this module out, or build it without qk_norm"
        )
    if biased:
        return (
            "relative biases are added to its logits and are not scaled with them. Take "
            "clippable(model, biased=True), which says what that is worth, leave this module out, "
            "or bound it with AttentionOptions.soft_cap"
        )
    return None


def per_head(name: str, values: Mapping[str, Any], path: str, heads: Heads) -> Array:
    """Finds what belongs to the heads of a module.

    Args:
      name: what it is, for errors.
      values: arrays `[N]` (of scanned layers also `[L, N]`) by dotted path.
      path: of the module.
      heads: of the module.

    Returns:
      float32 `[N]` or `[L, N]`.

    Raises:
      ValueError: if it is missing or of another shape.
    """
    names = heads.names(path)
    if path in values:
        found = jnp.asarray(values[path], jnp.float32)
    elif all(x in values for x in names):
        found = jnp.stack([jnp.asarray(values[x], jnp.float32) for x in names])
    else:
        raise ValueError(
            f"{name}: expected an array of shape {list(heads.shape)} for {path}, got only "
            f"{', '.join(sorted(values)) or 'nothing'}."
        )
    if found.shape != heads.shape:
        raise ValueError(
            f"{name}[{path!r}]: expected shape {list(heads.shape)}, got {list(found.shape)}."
        )
    return found


def owner(path: tuple[Any, ...], heads: Mapping[str, Heads]) -> tuple[str, str] | None:
    """Returns the module of `heads` and the part of `PARTS` that a leaf of parameters is, or None.

    Args:
      path: the leaf's keys, of plain dicts or an `nnx.State`.
      heads: by dotted path.
    """
    name = leaf_name(path)
    for part in PARTS:
        module = name.removesuffix(part).removesuffix(".")
        if name.endswith(part) and module in heads:
            return module, part
    return None


def leaf_name(path: tuple[Any, ...]) -> str:
    """Returns the dotted path of a leaf of parameters, of plain dicts or an `nnx.State`."""
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    # The leaves of an nnx.State are variables, and their arrays one key deeper.
    return name.removesuffix(".value") if isinstance(path[-1], jax.tree_util.GetAttrKey) else name


def dotted(path: tuple[Any, ...]) -> str:
    """Returns the keys of a module as `encoder.stack.layers.0.attention`."""
    return ".".join(str(x) for x in path)
