"""Three small tasks on which attention breaks at high learning rates, each on a CPU in seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from attnjax.models import LanguageModelConfig
from attnjax.nn import (
    AttentionOptions,
    Encoder,
    LearnedPositions,
    TransformerConfig,
)

WIDTH, HEADS, LAYERS = 32, 4, 2
FEW = ("none", "auto", "qk_norm", "z_loss", "sinks", "sigma_reparam")
"""Treatments of the smaller tasks."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained, and when a run of it counts as broken.

    Attributes:
      name: of the task.
      about: one sentence on it.
      build: `(options, rngs) -> model`.
      batch: `(key) -> batch`, a pytree of arrays; pure.
      loss: `(model, batch) -> loss`, a scalar in nats.
      rates: peak learning rates of the sweep.
      steps: of a run.
      warm_up: steps of it in which the rate rises.
      floor: nats by which a loss must exceed another to be clearly more, as in `judging.excess`; 2%
        of what guessing costs where the task can be solved, else 0.
      treatments: names of the treatments that are tried unless others are asked for; None is all.
    """

    name: str
    about: str
    build: Callable[[AttentionOptions, nnx.Rngs], nnx.Module]
    batch: Callable[[Array], Any]
    loss: Callable[[Any, Any], Array]
    rates: tuple[float, ...]
    steps: int
    warm_up: int
    floor: float = 0.0
    treatments: tuple[str, ...] | None = None


class Patches(nnx.Module):
    """A small vision Transformer: 16 patches of 2 x 2 pixels, the mean of which is classified."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs) -> None:
        self.inputs = nnx.Linear(4, config.features, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        self.output = nnx.Linear(config.features, 10, rngs=rngs)

    def __call__(self, patches: Array) -> Array:
        """Returns the logits `[B, 10]` of patches `[B, 16, 4]`."""
        hidden: Any = self.encoder(self.inputs(patches))
        return self.output(jnp.mean(hidden, axis=1))


def digits() -> Task:
    """Handwritten digits of scikit-learn (1,797 images, 8 x 8), by their patches.

    Raises:
      ModuleNotFoundError: without scikit-learn, which the extra `train` brings.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    tiles = images.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 16, 4)
    patches, classes = jnp.asarray(tiles / 8 - 1, jnp.float32), jnp.asarray(labels, jnp.int32)

    def build(options: AttentionOptions, rngs: nnx.Rngs) -> nnx.Module:
        options = dataclasses.replace(options, position=LearnedPositions(16))
        return Patches(_config(options), rngs=rngs)

    def batch(key: Array) -> tuple[Array, Array]:
        chosen = jax.random.randint(key, (64,), 0, len(classes))
        return patches[chosen], classes[chosen]

    def loss(model: Any, batch: Any) -> Array:
        return jnp.mean(_surprise(model(batch[0]), batch[1]))

    return Task(
        name="digits",
        about="digits of scikit-learn, as 16 patches of 2 x 2 pixels",
        build=build,
        batch=batch,
        loss=loss,
        rates=(1e-2, 2e-2, 3e-2, 6e-2, 1e-1, 2e-1),
        steps=400,
        warm_up=40,
        floor=0.02 * float(np.log(10)),
        treatments=FEW,
    )


def text() -> Task:
    """Characters of NumPy's docstrings, the next one from up to 32 before it."""
    corpus = _docstrings()
    codes, length = jnp.asarray(np.frombuffer(corpus.encode("ascii"), np.uint8), jnp.int32), 32

    def build(options: AttentionOptions, rngs: nnx.Rngs) -> nnx.Module:
        options = dataclasses.replace(options, position=LearnedPositions(length))
        return LanguageModelConfig(128, _config(options)).build(rngs=rngs)

    def batch(key: Array) -> Array:
        starts = jax.random.randint(key, (16,), 0, len(codes) - length)
        return codes[starts[:, None] + jnp.arange(length + 1)]

    def loss(model: Any, batch: Any) -> Array:
        return jnp.mean(_surprise(model(batch[:, :-1]), batch[:, 1:]))

    return Task(
        name="text",
        about=f"{len(corpus):,} characters of NumPy's docstrings, contexts of {length}",
        build=build,
        batch=batch,
        loss=loss,
        rates=(6e-3, 1e-2, 2e-2, 3e-2, 6e-2, 1e-1, 2e-1),
        steps=1000,
        warm_up=100,
    )


class Lookup(nnx.Module):
    """A small Transformer over pairs of a key and a value, and questions that have a key only."""

    def __init__(self, config: TransformerConfig, many: int, *, rngs: nnx.Rngs) -> None:
        self.keys = nnx.Embed(many, config.features, rngs=rngs)
        self.values = nnx.Embed(many + 1, config.features, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        self.output = nnx.Linear(config.features, many, rngs=rngs)

    def __call__(self, keys: Array, values: Array) -> Array:
        """Returns the logits `[B, T, V]` of values, from keys and values `[B, T]`."""
        hidden: Any = self.encoder(self.keys(keys) + self.values(values))
        return self.output(hidden)


def recall(keys: int = 16, times: int = 5, asked: int = 16) -> Task:
    """Recall over a context that is long for the model: which value went with a key.

    Args:
      keys: how many keys and how many values there are; keys differ, their values need not.
      times: how often each key is shown with its value, as one token, in random order. Keys that
        are shown once are learnt, too, but only after hundreds of steps of nothing.
      asked: how many questions follow, each a key whose value is asked.
    """
    shown = keys * times

    def build(options: AttentionOptions, rngs: nnx.Rngs) -> nnx.Module:
        return Lookup(_config(options), keys, rngs=rngs)

    def one(key: Array) -> tuple[Array, Array, Array]:
        first, second, third = jax.random.split(key, 3)
        values = jax.random.randint(first, (keys,), 0, keys)
        order = jax.random.permutation(second, jnp.repeat(jnp.arange(keys), times))
        questions = jax.random.randint(third, (asked,), 0, keys)
        blank = jnp.full(asked, keys)
        return (
            jnp.concatenate([order, questions]),
            jnp.concatenate([values[order], blank]),
            values[questions],
        )

    def batch(key: Array) -> tuple[Array, Array, Array]:
        return jax.vmap(one)(jax.random.split(key, 8))

    def loss(model: Any, batch: Any) -> Array:
        tokens, values, answers = batch
        return jnp.mean(_surprise(model(tokens, values)[:, shown:], answers))

    return Task(
        name="recall",
        about=f"{shown} pairs of {keys} keys and their values, then {asked} keys to recall",
        build=build,
        batch=batch,
        loss=loss,
        rates=(3e-3, 1e-2, 3e-2, 6e-2, 1e-1, 2e-1),
        steps=400,
        warm_up=40,
        floor=0.02 * float(np.log(keys)),
        treatments=FEW,
    )


TASKS: dict[str, Callable[[], Task]] = {"text": text, "digits": digits, "recall": recall}


def _config(options: AttentionOptions) -> TransformerConfig:
    return TransformerConfig(WIDTH, HEADS, LAYERS, hidden=2 * WIDTH, attention=options)


def _surprise(logits: Array, labels: Array) -> Array:
    """Returns the cross-entropy of each position in nats."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)
    return -chosen[..., 0]


def _docstrings() -> str:
    """Returns the docstrings of NumPy's functions and classes, ASCII only, in order of names."""
    modules = (np, np.linalg, np.fft, np.random)
    found = {
        text
        for module in modules
        for name in sorted(vars(module))
        if not name.startswith("_")
        if isinstance(text := getattr(getattr(module, name), "__doc__", None), str)
    }
    return "\n\n".join(sorted(found)).encode("ascii", "ignore").decode("ascii")
