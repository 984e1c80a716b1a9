"""Loading a folder of weights into a model of ours, and writing it back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from attnjax.models.pretrained.description import Pretrained, architecture, describe
from attnjax.models.pretrained.files import CONFIG, TensorFolder, read_json, write_folder
from attnjax.models.pretrained.layout import Layout, Tensors
from attnjax.models.pretrained.rules import Rule

Place = Callable[[str, np.ndarray], Array]
"""Puts a parameter on devices: `place(path, value)`."""


def load(
    folder: str | Path,
    *,
    scan_layers: bool = False,
    remat: Literal["none", "full", "dots"] = "none",
    dtype: Any = None,
    param_dtype: Any = None,
    place: Place | None = None,
) -> tuple[Any, Pretrained]:
    """Loads a model of the transformers library from the folder it was saved to.

    Nothing is fetched from anywhere. The tokenizer is left to the library it belongs to.

    Args:
      folder: with `config.json`, and `model.safetensors` or several files and their index.
      scan_layers: as in `TransformerConfig`; for models whose layers are all alike.
      remat: as in `TransformerConfig`.
      dtype: of the computation; None is the parameters'.
      param_dtype: of the parameters; None keeps each as it is stored.
      place: puts a parameter on devices, given its path (`decoder.norm.scale`) and value, for
        example in shards; None uses the default device.

    Returns:
      The model, without dropout, and what it was made from, which `save` needs.

    Raises:
      ValueError: if files, fields or tensors are missing, broken or do not fit together.
      NotImplementedError: for a model type, a field or a value that cannot be computed here.
      ImportError: if safetensors is not installed.
    """
    folder = Path(folder)
    fields, tensors = read_json(folder / CONFIG), TensorFolder(folder)
    config = describe(
        fields,
        scan_layers=scan_layers,
        remat=remat,
        dtype=dtype,
        param_dtype=param_dtype,
        tensors=tensors,
    )
    named = _Renamed(tensors, config.layout)
    _check_names(named, config.layout)
    put = (lambda _, value: jnp.asarray(value)) if place is None else place
    return _fill(config, named, param_dtype, put), config


def save(
    model: Any, config: Pretrained, folder: str | Path, *, shard_bytes: int = 5_000_000_000
) -> None:
    """Writes a model that the transformers library can load.

    Args:
      model: as `load` or `config.build` made it; its parameters may have changed.
      config: what came with it.
      folder: where to; made if it is missing.
      shard_bytes: the largest file; more than that goes into several files with an index.

    Raises:
      ValueError: if the model is another than the config describes, or the folder already holds a
        model.
      ImportError: if safetensors is not installed.
    """
    params = {".".join(map(str, path)): x[...] for path, x in _parameters(model)}
    layout = config.layout
    homes = {rule.theirs: _homes(rule, params) for rule in layout.rules}
    missing = [path for home in homes.values() for path, _ in home if path not in params]
    wanted = {path for home in homes.values() for path, _ in home}
    if missing or wanted != params.keys():
        odd = sorted({*missing, *(params.keys() - wanted)})
        raise ValueError(f"model: expected the parameters that the config describes, got {odd[0]}.")

    def theirs(rule: Rule) -> np.ndarray:
        arrays = [
            np.asarray(params[path] if n is None else params[path][n])
            for path, n in homes[rule.theirs]
        ]
        return rule.write(arrays)

    def each() -> Iterator[tuple[str, np.ndarray]]:
        for rule in layout.rules:
            yield rule.theirs, theirs(rule)

    sizes = {
        rule.theirs: sum(_bytes(params[path], n) for path, n in homes[rule.theirs])
        for rule in layout.rules
    }
    fields = _fields(config.fields, {np.dtype(x.dtype).name for x in params.values()})
    write_folder(Path(folder), fields, sizes, each(), shard_bytes=shard_bytes)


def _parameters(model: Any) -> Any:
    return nnx.to_flat_state(nnx.state(model, nnx.Param))


def _bytes(x: Array, layer: int | None) -> int:
    return x.nbytes if layer is None else x.nbytes // x.shape[0]


def _homes(rule: Rule, params: Mapping[str, Any]) -> list[tuple[str, int | None]]:
    """Returns the parameters that hold a tensor: path, and layer if the path holds all layers."""
    if rule.layer is None:
        return [(path, None) for path in rule.ours]
    listed = [(path.replace("*", str(rule.layer)), None) for path in rule.ours]
    if all(path in params for path, _ in listed):
        return [*listed]
    return [(path.replace(".*", ""), rule.layer) for path in rule.ours]


def _fields(fields: Mapping[str, Any], dtypes: set[str]) -> dict[str, Any]:
    fields = {**fields, "architectures": [architecture(fields)]}
    if len(dtypes) == 1:
        name = "torch_dtype" if "torch_dtype" in fields else "dtype"
        fields[name] = next(iter(dtypes))
    return fields


class _Renamed(Mapping[str, np.ndarray]):
    """Tensors by the names that rules use, those of no effect left out."""

    def __init__(self, tensors: Tensors, layout: Layout) -> None:
        self._tensors = tensors
        names = {layout.rename(name): name for name in tensors}
        ignored = re.compile("|".join(layout.ignored) or "(?!)")
        self._names = {new: old for new, old in names.items() if not ignored.fullmatch(new)}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _check_names(tensors: Tensors, layout: Layout) -> None:
    wanted = {rule.theirs for rule in layout.rules}
    missing = sorted(wanted - tensors.keys())
    if missing:
        raise ValueError(
            f"weights: expected {len(wanted)} tensors, {len(missing)} of them are missing: "
            f"{_some(missing)}."
        )
    extra = sorted(tensors.keys() - wanted - layout.copies.keys())
    if extra:
        raise ValueError(
            f"weights: {len(extra)} tensors have no place in what config.json describes: "
            f"{_some(extra)}."
        )
    for copy, original in layout.copies.items():
        if copy in tensors and not np.array_equal(tensors[copy], tensors[original]):
            raise ValueError(
                f"weights: expected {copy} to equal {original}, to which config.json ties it."
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _fill(config: Pretrained, tensors: Tensors, param_dtype: Any, put: Place) -> Any:
    """Returns the model with its parameters read; no other parameters are ever made."""

    def build() -> Any:
        return config.build(rngs=nnx.Rngs(0))

    graphdef, params, *_ = nnx.split(nnx.eval_shape(build), nnx.Param, ...)
    shapes = {".".join(map(str, path)): x.shape for path, x in nnx.to_flat_state(params)}
    values: dict[str, Any] = {}
    for rule in config.layout.rules:
        homes = _homes(rule, shapes)
        for (path, layer), x in zip(homes, _read(rule, tensors, homes, shapes), strict=True):
            x = x if param_dtype is None else x.astype(param_dtype)
            if layer is None:
                values[path] = put(path, np.ascontiguousarray(x))
                continue
            if path not in values:
                values[path] = np.empty(shapes[path], x.dtype)
            if values[path].dtype != x.dtype:
                raise ValueError(
                    f"weights: {rule.theirs}: expected {values[path].dtype}, as in the layers "
                    f"before, got {x.dtype}. Pass param_dtype, or scan_layers=False."
                )
            values[path][layer] = x
    assert values.keys() == shapes.keys(), values.keys() ^ shapes.keys()
    filled = [
        (path, x.replace(_placed(put, ".".join(map(str, path)), values)))
        for path, x in nnx.to_flat_state(params)
    ]
    # The rest is the streams of dropout; unasked for, the parameters are not made for it.
    rest = jax.jit(lambda: nnx.state(build(), nnx.Not(nnx.Param)))()
    return nnx.merge(graphdef, nnx.from_flat_state(filled), rest)


def _placed(put: Place, path: str, values: dict[str, Any]) -> Any:
    value = values.pop(path)
    return put(path, value) if isinstance(value, np.ndarray) else value


def _read(
    rule: Rule,
    tensors: Tensors,
    homes: list[tuple[str, int | None]],
    shapes: Mapping[str, tuple[int, ...]],
) -> list[np.ndarray]:
    tensor = tensors[rule.theirs]
    wanted = [shapes[path] if n is None else shapes[path][1:] for path, n in homes]
    try:
        found = list(rule.read(tensor))
    except ValueError:
        found = []
    if [x.shape for x in found] != wanted or not jnp.issubdtype(tensor.dtype, jnp.floating):
        expected = " and ".join(map(str, wanted))
        raise ValueError(
            f"weights: {rule.theirs}: expected floats that make arrays of shape {expected}, as "
            f"config.json describes, got shape {tensor.shape}, dtype {tensor.dtype}."
        )
    return found
