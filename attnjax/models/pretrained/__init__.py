"""Weights of the transformers library: loaded into models of ours, and written back."""

from attnjax.models.pretrained.description import Pretrained, describe
from attnjax.models.pretrained.loading import load, save

__all__ = ["Pretrained", "describe", "load", "save"]
