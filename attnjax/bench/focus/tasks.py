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
    """

    name: str
    about: str
    build: Callable[[AttentionOptions, nnx.Rngs], nnx.Module]
    batch: Callable[[Array], Any]
    loss: Callable[[Any, Any], Array]
    rates: tuple[float, ...]
    steps: int


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
        rates=(6e-3, 1e-2, 2e-2, 3e-2, 6e-2, 1e-1, 2e-1),
        steps=400,
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
        steps=400,
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


def recall(pairs: int = 96, asked: int = 32) -> Task:
    """Recall over a long context: which value went with a key.

    Args:
      pairs: pairs that are shown, each as one token; keys differ, values need not.
      asked: how many of their keys are asked for, after them.
    """

    def build(options: AttentionOptions, rngs: nnx.Rngs) -> nnx.Module:
        return Lookup(_config(options), pairs, rngs=rngs)

    def one(key: Array) -> tuple[Array, Array, Array]:
        first, second = jax.random.split(key)
        keys = jax.random.permutation(first, pairs)
        values = jax.random.randint(second, (pairs,), 0, pairs)
        blank = jnp.full(asked, pairs)
        # The keys are in random order already, so the first of them are as good as any.
        return (
            jnp.concatenate([keys, keys[:asked]]),
            jnp.concatenate([values, blank]),
            values[:asked],
        )

    def batch(key: Array) -> tuple[Array, Array, Array]:
        return jax.vmap(one)(jax.random.split(key, 16))

    def loss(model: Any, batch: Any) -> Array:
        keys, values, answers = batch
        return jnp.mean(_surprise(model(keys, values)[:, pairs:], answers))

    return Task(
        name="recall",
        about=f"{pairs} pairs of key and value, then {asked} keys whose values are asked",
        build=build,
        batch=batch,
        loss=loss,
        rates=(3e-3, 6e-3, 1e-2, 3e-2, 6e-2, 1e-1),
        steps=400,
    )


TASKS: dict[str, Callable[[], Task]] = {"digits": digits, "text": text, "recall": recall}


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
