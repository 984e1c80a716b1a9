"""From parameter paths to logical axes, and from logical axes to mesh axes: a table, no state.

Modules carry no annotations: a module that does cannot be built without a mesh, nor with sizes that
do not divide. The names and shapes that a model ends up with are enough to say where each parameter
belongs.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

MeshAxes = str | tuple[str, ...] | None
LAYERS = "layers"
"""The logical axis that scanned layers add in front; the scan slices it, so nothing splits it."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which mesh axes split which dimensions of which parameters.

    A parameter's dotted path (`encoder.stack.layers.0.attention.query.kernel`) is searched for the
    patterns of `paths`, in their order; the first that is found names the logical axes, one per
    dimension, None for a dimension without a name. A parameter with one dimension more has
    `layers` in front, as scanned layers have. `axes` then maps logical axes to mesh axes.

    Afterwards `split`, if it is in no dimension yet, takes the largest dimension, `layers` aside,
    that has no mesh axis and that it divides: fully sharded data parallelism. Only parameters of
    at least `min_size` numbers are split by it, for each costs a collective in every pass; where
    other mesh axes split all dimensions, nothing is left for it.

    A parameter that no pattern finds stays whole on every device if it is smaller than `min_size`,
    or if every mesh axis that the rules use has size 1. Any other is an error, never a guess.

    Attributes:
      paths: pairs of a regular expression and logical axes.
      axes: pairs of a logical axis and the mesh axis, the mesh axes in their order, or None, that
        split it.
      split: the mesh axis of fully sharded data parallelism, or None.
      min_size: numbers in the smallest parameter that `split` splits.

    Raises:
      ValueError: a pattern is no regular expression, a logical axis has no line in `axes` or two,
        or `min_size` is negative.
    """

    paths: tuple[tuple[str, tuple[str | None, ...]], ...]
    axes: tuple[tuple[str, MeshAxes], ...]
    split: str | None = "fsdp"
    min_size: int = 2**16

    def __post_init__(self) -> None:
        names = [name for name, _ in self.axes]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"Rules.axes: expected one line per logical axis, got two of {twice}.")
        if self.min_size < 0:
            raise ValueError(f"Rules.min_size: expected at least 0, got {self.min_size}.")
        for pattern, logical in self.paths:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"Rules.paths: expected a regular expression, got {pattern!r}: {error}."
                ) from error
            if unknown := [name for name in logical if name not in {*names, None}]:
                raise ValueError(
                    f"Rules.paths: {pattern!r} names the logical axis {unknown[0]!r}, which "
                    f"Rules.axes does not have; it has {', '.join(names) or 'none'}."
                )

    def extended(
        self,
        *,
        paths: tuple[tuple[str, tuple[str | None, ...]], ...] = (),
        axes: tuple[tuple[str, MeshAxes], ...] = (),
    ) -> Rules:
        """Returns rules that ask these first: patterns go before, logical axes are replaced."""
        given = {name for name, _ in axes}
        kept = tuple((name, where) for name, where in self.axes if name not in given)
        return dataclasses.replace(self, paths=(*paths, *self.paths), axes=(*axes, *kept))

    def logical(self, path: str, shape: tuple[int, ...]) -> tuple[str | None, ...] | None:
        """Returns the logical axes of a parameter, or None if no pattern finds its path.

        Raises:
          ValueError: the first pattern that finds it is of another rank.
        """
        for pattern, axes in self.paths:
            if re.search(pattern, path):
                if len(shape) == len(axes):
                    return axes
                if len(shape) == len(axes) + 1:
                    return (LAYERS, *axes)
                raise ValueError(
                    f"{path}: expected {len(axes)} dimensions {axes}, as the rule {pattern!r} "
                    f"says, or one more for scanned layers; got shape {list(shape)}. Put a rule "
                    "of its own before that one."
                )
        return None

    def spec(self, path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
        """Returns where a parameter belongs.

        Args:
          path: its dotted path.
          shape: its shape.
          sizes: each mesh axis' size, as `mesh.shape` has them.

        Returns:
          The mesh axes of each dimension; those of size 1 are left out.

        Raises:
          ValueError: there is no rule, a mesh axis would split two dimensions, a dimension does
            not divide, or the mesh lacks an axis; names the parameter, the axis and the sizes.
        """
        self._check_mesh(sizes)
        large = math.prod(shape) >= self.min_size
        logical = self.logical(path, shape)
        if logical is None:
            if large and any(sizes[name] > 1 for name in self._mesh_axes()):
                raise ValueError(
                    f"{path} {list(shape)}: no rule names this parameter, and with at least "
                    f"min_size={self.min_size} numbers it does not stay whole by itself. Add "
                    f"({re.escape(path)!r}, {(None,) * len(shape)}) to the rules' paths, with "
                    f"logical axes such as {', '.join(name for name, _ in self.axes)} where one "
                    "fits."
                )
            return PartitionSpec()
        where = dict(self.axes)
        placed = [_names(where.get(name)) if name else () for name in logical]
        self._check(path, shape, logical, placed, sizes)
        placed = [tuple(name for name in names if sizes[name] > 1) for names in placed]
        if large and self.split is not None and sizes[self.split] > 1:
            self._split(path, shape, logical, placed, sizes[self.split])
        return PartitionSpec(*(_entry(names) for names in placed))

    def _mesh_axes(self) -> set[str]:
        """The mesh axes that the rules use."""
        used = {name for _, where in self.axes for name in _names(where)}
        return used if self.split is None else used | {self.split}

    def _check_mesh(self, sizes: Mapping[str, int]) -> None:
        if missing := sorted(self._mesh_axes() - sizes.keys()):
            raise ValueError(
                f"the rules use the mesh axis {missing[0]!r}, which the mesh does not have; it has "
                f"{_describe(sizes)}. Give the mesh that axis, of size 1 if it shall split "
                "nothing, or map the rules' logical axes elsewhere."
            )

    def _check(
        self,
        path: str,
        shape: tuple[int, ...],
        logical: tuple[str | None, ...],
        placed: list[tuple[str, ...]],
        sizes: Mapping[str, int],
    ) -> None:
        """Raises where the named dimensions cannot be split as the rules say."""
        taken: dict[str, int] = {}
        for dim, names in enumerate(placed):
            for name in names:
                if name in taken:
                    raise ValueError(
                        f"{path} {list(shape)}: the mesh axis {name!r} (size {sizes[name]}) would "
                        f"split two dimensions, {taken[name]} ({logical[taken[name]]}, "
                        f"{shape[taken[name]]}) and {dim} ({logical[dim]}, {shape[dim]}). Map one "
                        "of the two logical axes elsewhere, or to None."
                    )
                taken[name] = dim
            parts = math.prod(sizes[name] for name in names)
            if shape[dim] % parts:
                raise ValueError(
                    f"{path} {list(shape)}: dimension {dim} ({logical[dim]}, {shape[dim]}) must be "
                    f"a multiple of the mesh axes that split it, "
                    f"{_describe({name: sizes[name] for name in names})}. Change one of the sizes, "
                    f"or map {logical[dim]!r} to None."
                )

    def _split(
        self,
        path: str,
        shape: tuple[int, ...],
        logical: tuple[str | None, ...],
        placed: list[tuple[str, ...]],
        size: int,
    ) -> None:
        """Gives `split` the largest dimension that is left and divides, in `placed`."""
        assert self.split is not None
        if any(self.split in names for names in placed):
            return
        free = [d for d, names in enumerate(placed) if not names and logical[d] != LAYERS]
        fits = [d for d in free if shape[d] % size == 0]
        if not free:
            return
        if not fits:
            raise ValueError(
                f"{path} {list(shape)}: the mesh axis {self.split!r} (size {size}) must divide one "
                f"of the dimensions that nothing else splits, {[shape[d] for d in free]}. Change a "
                f"size, or raise min_size={self.min_size} to keep such parameters whole."
            )
        placed[max(fits, key=lambda d: shape[d])] = (self.split,)


TRANSFORMER = Rules(
    paths=(
        # Two axes each, where those of `attnjax.nn` have three.
        (r"\b(pointer|alignment)\.(query|key|gate)\.kernel$", ("embed", None)),
        (r"\b(pointer\.gate|alignment\.key)\.bias$", (None,)),
        (r"\balignment\.weight$", (None, None)),
        (r"\bquery\.kernel$", ("embed", "heads", "width")),
        (r"\b(key|value)\.kernel$", ("embed", "kv_heads", "width")),
        (r"\bout\.kernel$", ("heads", "width", "embed")),
        (r"\bquery\.bias$", ("heads", "width")),
        (r"\b(key|value)\.bias$", ("kv_heads", "width")),
        (r"\b(sinks|log_temperature)$", ("heads",)),
        (r"\bgamma$", ()),
        (r"\bper_key\.kernel$", ("embed", "heads")),
        (r"\bposition_table$", (None, None)),
        (r"\binputs\.table$", (None, "embed")),
        (r"\b(up|gate)\.kernel$", ("embed", "mlp")),
        (r"\b(up|gate)\.bias$", ("mlp",)),
        (r"\bdown\.kernel$", ("mlp", "embed")),
        (r"\brouter\.kernel$", ("embed", None)),
        (r"\brouter\.bias$", (None,)),
        (r"\bfeed_forward\.(up|gate)$", ("expert", "embed", "mlp")),
        (r"\bfeed_forward\.(up|gate)_bias$", ("expert", "mlp")),
        (r"\bfeed_forward\.down$", ("expert", "mlp", "embed")),
        (r"\bfeed_forward\.down_bias$", ("expert", "embed")),
        (r"\b(down|out)\.bias$", ("embed",)),
        (r"(norm|_after)\.(scale|bias)$", (None,)),
        (r"\bpooling\.hidden\.kernel$", ("embed", None)),
        (r"\bpooling\.query$", (None, None)),
        (r"\bsegment_embedding\.embedding$", (None, "embed")),
        (r"\bembedding$", ("vocab", "embed")),
        (r"\boutput\.kernel$", ("embed", "vocab")),
        (r"^bias$", ("vocab",)),
        (r"\b(inputs|second|bridge|readout|span|transform|pooler)\.kernel$", ("embed", None)),
        (r"\b(inputs|bridge|readout|span|transform|pooler)\.bias$", (None,)),
        (r"\brecurrent$", ("embed", None)),
    ),
    axes=(
        ("embed", None),
        ("heads", "model"),
        ("kv_heads", "model"),
        ("width", None),
        ("mlp", "model"),
        ("expert", None),
        ("vocab", "model"),
    ),
)
"""Rules for what `attnjax.nn` and `attnjax.models` build, on a mesh with the axes fsdp and model:
heads, the inside of feed-forward layers and the vocabulary are split over `model` (Shoeybi et al.,
"Megatron-LM", 2019), the rest over `fsdp` (Rajbhandari et al., "ZeRO", 2020)."""


def shardings(tree: Any, mesh: Mesh | AbstractMesh, rules: Rules = TRANSFORMER) -> Any:
    """Says where each parameter of a model belongs.

    Args:
      tree: a pytree of arrays, or of anything that has their shapes.
      mesh: the mesh.
      rules: how.

    Returns:
      A tree of the same structure that holds a `NamedSharding` for each array.

    Raises:
      ValueError: a parameter cannot be placed; `Rules.spec` says when.
    """

    def place(path: tuple[Any, ...], x: Any) -> NamedSharding:
        dotted = jax.tree_util.keystr(path, simple=True, separator=".")
        return NamedSharding(mesh, rules.spec(dotted, tuple(x.shape), mesh.shape))

    return jax.tree_util.tree_map_with_path(place, tree)


def _names(where: MeshAxes) -> tuple[str, ...]:
    """Mesh axes as a tuple."""
    return () if where is None else (where,) if isinstance(where, str) else where


def _entry(names: tuple[str, ...]) -> MeshAxes:
    """Mesh axes as an entry of a PartitionSpec."""
    return None if not names else names[0] if len(names) == 1 else names


def _describe(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items()) or "no axes"
