"""What the description of a model type consists of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from attnjax.models.pretrained.rules import Rule


@dataclasses.dataclass(frozen=True)
class Build:
    """How a loaded model shall compute; fields as those of `TransformerConfig`."""

    scan_layers: bool = False
    remat: Literal["none", "full", "dots"] = "none"
    dtype: Any = None
    param_dtype: Any = None

    def options(self) -> dict[str, Any]:
        """Returns them as arguments of a `TransformerConfig`."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True)
class Layout:
    """A model of ours that computes what theirs does, and where each tensor belongs.

    Attributes:
      model: the config of the model.
      rules: one for each tensor.
      copies: tensors that may be there beside those of the rules, and then are equal to another.
      ignored: patterns of names of tensors that have no effect.
      rename: brings the names in older files to those of the rules.
    """

    model: Any
    rules: tuple[Rule, ...]
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    rename: Callable[[str], str] = str


Tensors = Mapping[str, np.ndarray]
"""Tensors of theirs by name; they are read from the file when they are looked up."""
