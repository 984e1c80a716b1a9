"""What happens to scores between the dot product and the softmax."""

from attnjax.scores.base import (
    Declared,
    ScoreMod,
    as_score_mods,
    check_scores,
    score_mod,
)
from attnjax.scores.elementwise import Activation, activated, bias, soft_cap, temperature
from attnjax.scores.positional import alibi, relative_bias, t5_bucket
from attnjax.typing import ScoreFn

__all__ = [
    "Activation",
    "Declared",
    "ScoreFn",
    "ScoreMod",
    "activated",
    "alibi",
    "as_score_mods",
    "bias",
    "check_scores",
    "relative_bias",
    "score_mod",
    "soft_cap",
    "t5_bucket",
    "temperature",
]
