"""Rotary positions as a `config.json` names them."""

from __future__ import annotations

import math
from typing import Any

from attnjax.models.pretrained.fields import Fields
from attnjax.nn import Rotary, llama3_rotary, yarn_rotary

_BY_LENGTH = {
    "dynamic": "its frequencies depend on the length of the sequence",
    "longrope": "its frequencies depend on the length of the sequence",
}


def read_rotary(fields: Fields, theta: float) -> Rotary:
    """Returns the rotary positions of a model whose layers have the same.

    Args:
      fields: of the model, with `rope_parameters`, or `rope_theta` and `rope_scaling` as older
        versions name them.
      theta: the base where the fields do not say it.

    Raises:
      ValueError: for a number that is missing or no number.
      NotImplementedError: for a kind that cannot be computed here.
    """
    theta = fields.number("rope_theta", theta)
    new, old = fields.part("rope_parameters"), fields.part("rope_scaling")
    if new is not None and old is not None:
        raise ValueError("config.json: expected rope_parameters or rope_scaling, got both.")
    fields.only("partial_rotary_factor", 1.0)
    return rotary(new or old, theta, fields.size("max_position_embeddings", None))


def rotary(part: Fields | None, theta: float, length: int | None) -> Rotary:
    """Returns the rotary positions that some fields describe.

    Args:
      part: the fields of the positions; None are plain ones.
      theta: the base where they do not say it.
      length: positions of the training where they do not say that.

    Raises:
      ValueError: for a number that is missing or no number.
      NotImplementedError: for a kind that cannot be computed here.
    """
    if part is None:
        return Rotary(theta)
    theta = part.number("rope_theta", theta)
    older = part.get("type", "default")
    kind = part.get("rope_type", older)
    part.only("partial_rotary_factor", 1.0)
    if kind in _BY_LENGTH:
        raise NotImplementedError(f"rope_type {kind!r} cannot be loaded: {_BY_LENGTH[kind]}.")
    if kind == "default":
        result = Rotary(theta)
    elif kind == "linear":
        result = Rotary(theta, interpolation=part.number("factor"))
    elif kind == "llama3":
        result = llama3_rotary(
            base=theta,
            factor=part.number("factor"),
            low=part.number("low_freq_factor"),
            high=part.number("high_freq_factor"),
            original_length=_original(part, length),
        )
    elif kind == "yarn":
        result = yarn_rotary(base=theta, **_yarn(part, length))
    else:
        raise NotImplementedError(
            f"rope_type: only default, linear, llama3 and yarn can be loaded, got {kind!r}."
        )
    # Every kind may carry these, and only some read them.
    part.finish({"original_max_position_embeddings"})
    return result


def _original(part: Fields, length: int | None) -> int:
    found = part.size("original_max_position_embeddings", length)
    if found is None:
        raise ValueError("config.json: original_max_position_embeddings: expected a number.")
    return int(found)


def _yarn(part: Fields, length: int | None) -> dict[str, Any]:
    original = _original(part, length)
    factor = part.number("factor", None)
    if factor is None:
        factor = (length or original) / original
    magnitude = part.number("attention_factor", None)
    above, below = part.number("mscale", None), part.number("mscale_all_dim", None)
    if magnitude is None and above and below:
        grown = 0.1 * math.log(max(factor, 1.0))
        magnitude = (above * grown + 1) / (below * grown + 1)
    return {
        "factor": factor,
        "original_length": original,
        "fast": part.number("beta_fast", 32.0),
        "slow": part.number("beta_slow", 1.0),
        "truncate": part.flag("truncate", True),
        "magnitude": magnitude,
    }
