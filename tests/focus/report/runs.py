"""Run directories as training would leave them, made of formulas."""

import base64
import json
import struct
import zlib
from pathlib import Path

import numpy as np

WORDS = [
    "the",
    "film",
    "is",
    "a",
    "quiet",
    ",",
    "patient",
    "and",
    "finally",
    "devastating",
    "look",
    "at",
    "what",
    "people",
    "owe",
    "each",
    "other",
    "when",
    "nobody",
    "is",
    "watching",
    "them",
]


def png_of(pixels: np.ndarray) -> str:
    """Grey levels, uint8 [h, w], as a data: address."""
    height, width = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    )
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _statistics(step: int, layer: int, heads: int, phase: float) -> dict[str, list[float | None]]:
    head = np.arange(heads)
    progress = step / 4000
    share = 0.92 - 0.5 * progress * (1 + np.sin(head + phase)) / 2 - 0.02 * layer * progress
    share = np.where((head == 1) & (layer == 1) & (step > 2000), 0.03, share).clip(0.01, 1)
    entropy = share * np.log(64)
    logits = (2 + 3 * layer + head / 2) * np.exp(2.2 * progress * ((head + layer) % 5 == 2))
    values = {
        "entropy": entropy,
        "share": share,
        "keys": np.exp(entropy),
        "max_logit": logits,
        "logsumexp_sq": logits**2 / 3,
        "sink_mass": (0.02 + 0.9 * progress * (head % 4 == 3)).clip(0, 1),
        "distance": 4 + 3 * head * (1 - share) + layer,
        "output": 0.3 + 0.1 * np.cos(head + layer + phase) * (1 - progress / 2),
        "duplicate": 0.15 + 0.1 * np.sin(2 * head + layer + phase),
    }
    found = {name: [round(float(x), 5) for x in array] for name, array in values.items()}
    if layer == 1 and heads > 2 and 2400 < step < 2800:
        found["max_logit"][2] = None
    return found


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def focus_rows(layers: int, heads: int, steps: int, every: int, phase: float = 0.0) -> list[dict]:
    """The lines of a focus.jsonl."""
    names = [f"encoder.layers.{layer}.attention" for layer in range(layers)]
    rows: list[dict] = [
        {
            "kind": "layout",
            "version": 1,
            "every": every,
            "modules": {n: {"heads": heads} for n in names},
        }
    ]
    for step in range(every, steps * every + 1, every):
        modules = {
            name: _statistics(step * 4000 // (steps * every), layer, heads, phase)
            for layer, name in enumerate(names)
        }
        rows.append({"kind": "heads", "step": step, "modules": modules})
    end = steps * every
    one = names[min(1, layers - 1)]
    rows += [
        _warning(
            end // 2,
            one,
            1,
            "entropy_collapse",
            0.03,
            0.05,
            "entropy is at 0.03 of its maximum, below 0.05: the head sees single keys",
        ),
        _warning(
            3 * end // 5,
            one,
            min(2, heads - 1),
            "logit_growth",
            None,
            50.0,
            "the largest logit is not finite, above 50: the softmax saturates",
        ),
        _warning(
            end // 4,
            names[-1],
            heads - 1,
            "sink",
            0.97,
            0.95,
            "0.97 of the weight is on key 0, more than 0.95: the rest is hardly used",
        ),
        {"kind": "over", "step": end // 3, "module": names[-1], "head": heads - 1, "what": "sink"},
        {
            "kind": "remedy",
            "step": 13 * end // 20,
            "module": one,
            "head": None,
            "what": "qk_clip",
            "strength": 0.8,
            "why": "logits of two heads passed 50; queries and keys were scaled by 0.89 each",
        },
    ]
    return rows


def _warning(step, module, head, what, value, threshold, why) -> dict:
    return {
        "kind": "warning",
        "step": step,
        "module": module,
        "head": head,
        "what": what,
        "value": value,
        "threshold": threshold,
        "why": why,
    }


def metrics_rows(steps: int, phase: float = 0.0) -> list[dict]:
    """The lines of a metrics.jsonl."""
    rows = []
    noise = np.random.default_rng(int(10 * phase)).normal(0, 0.04, steps // 20 + 1)
    for place, step in enumerate(range(20, steps + 1, 20)):
        loss = 0.3 + 2.2 * np.exp(-step / (steps / (4 + phase))) + noise[place]
        rows.append(
            {
                "kind": "train",
                "step": step,
                "loss": loss,
                "grad_norm": 0.5 + abs(noise[place]) * 9,
                "learning_rate": 1e-3 * min(1, step / 400) * (1 - step / (steps + 1)),
                "seconds": {"data": 0.01},
            }
        )
        if step % (steps // 10 // 20 * 20 or 20) == 0:
            rows.append(
                {
                    "kind": "eval",
                    "step": step,
                    "loss": loss + 0.08,
                    "accuracy": 1 - loss / 2.8,
                    "macro_f1": 0.97 - loss / 2.7,
                    "seconds": {"eval": 0.5},
                }
            )
    return rows


def _weights(count: int, seed: int, sharp: float = 2.0) -> list[float]:
    draws = np.exp(sharp * np.random.default_rng(seed).normal(size=count))
    return [round(float(x), 5) for x in draws / draws.sum()]


def examples_object() -> dict:
    """A focus_examples.json with all kinds of examples."""
    signed = [round(float(x), 4) for x in np.random.default_rng(3).normal(0, 0.1, len(WORDS))]
    shares = [i / 10 for i in range(11)]
    falling = [[x, 0.95 - 0.8 * x**0.4] for x in shares]
    slow = [[x, 0.95 - 0.75 * x**1.6] for x in shares]
    tokens = {
        "title": "A review that is right",
        "kind": "tokens",
        "tokens": WORDS,
        "prediction": "positive",
        "label": "positive",
        "maps": [
            {
                "name": "attention pooling",
                "module": "pooling",
                "head": 0,
                "weights": _weights(len(WORDS), 1),
            },
            {"name": "gradient-weighted", "module": None, "head": None, "weights": signed},
            {
                "name": "rollout",
                "module": None,
                "head": None,
                "weights": _weights(len(WORDS), 2, 0.5),
            },
        ],
        "faithful": {
            "gradient-weighted": {
                "deletion": falling,
                "insertion": [[x, 0.2 + 0.7 * x**0.4] for x in shares],
            },
            "attention pooling": {"deletion": slow},
            "random": {
                "deletion": [[x, 0.95 - 0.75 * x] for x in shares],
                "insertion": [[x, 0.2 + 0.7 * x] for x in shares],
            },
        },
    }
    wrong = {
        "title": "A review that is wrong",
        "kind": "tokens",
        "tokens": WORDS[::-1],
        "prediction": "negative",
        "label": "positive",
        "maps": [
            {
                "name": "attention pooling",
                "module": "pooling",
                "head": 0,
                "weights": _weights(len(WORDS), 5),
            }
        ],
        "faithful": None,
    }
    source, target = (
        ["ein", "Mann", "schläft", "in", "einem", "grünen", "Raum", "auf", "einem", "Sofa", "."],
        ["a", "man", "sleeping", "in", "a", "green", "room", "on", "a", "couch", "."],
    )
    near = -np.abs(
        np.arange(len(target))[:, None] - np.arange(len(source))[None] * len(target) / len(source)
    )
    matrix = np.exp(near) / np.exp(near).sum(1, keepdims=True)
    alignment = {
        "title": "A sentence and its translation",
        "kind": "alignment",
        "source": source,
        "target": target,
        "prediction": " ".join(target),
        "label": "a man is sleeping on a couch in a green room .",
        "maps": [
            {
                "name": "cross attention",
                "module": "decoder.layers.1.cross",
                "head": 3,
                "weights": np.round(matrix, 4).tolist(),
            },
            {
                "name": "cross attention, all heads",
                "module": None,
                "head": None,
                "weights": np.round(matrix**0.5 / (matrix**0.5).sum(1, keepdims=True), 4).tolist(),
            },
        ],
    }
    y, x = np.mgrid[:8, :8]
    digit = (255 * np.exp(-((np.hypot(y - 3.5, x - 3.5) - 2.5) ** 2))).astype(np.uint8)
    image = {
        "title": "A handwritten nought",
        "kind": "image",
        "image": png_of(digit),
        "prediction": "0",
        "label": "0",
        "maps": [
            {
                "name": "rollout",
                "module": None,
                "head": None,
                "weights": np.round(
                    np.exp(-((y[:4, :4] - 1.5) ** 2 + (x[:4, :4] - 0.8) ** 2) / 2), 4
                ).tolist(),
            }
        ],
    }
    time = np.arange(140)
    series = {
        "title": "Two channels of an accelerometer",
        "kind": "series",
        "names": ["across (g)", "along (g)"],
        "prediction": "walking",
        "label": "walking",
        "values": [
            np.round(np.sin(time / 5), 4).tolist(),
            np.round(0.3 * np.cos(time / 9) + 0.5, 4).tolist(),
        ],
        "maps": [
            {
                "name": "rollout",
                "module": None,
                "head": None,
                "weights": np.round(np.exp(-((time - 90) ** 2) / 200), 4).tolist(),
            }
        ],
    }
    return {
        "version": 1,
        "task": "sentiment of reviews",
        "examples": [tokens, wrong, alignment, image, series],
        "faithful": {
            "gradient-weighted": {
                "examples": 400,
                "deletion": 0.412,
                "deletion_random": 0.571,
                "margin": 0.159,
                "interval": [0.141, 0.177],
                "insertion": 0.702,
                "insertion_random": 0.551,
                "agreement_gradients": 0.61,
                "agreement_leave_one_out": 0.55,
                "random_weights": 0.08,
            },
            "attention pooling": {
                "examples": 400,
                "deletion": 0.568,
                "deletion_random": 0.571,
                "margin": 0.003,
                "interval": [-0.012, 0.018],
                "insertion": 0.56,
                "insertion_random": 0.551,
                "agreement_gradients": 0.21,
                "agreement_leave_one_out": 0.18,
                "random_weights": 0.83,
            },
        },
    }


def write_run(
    path: Path,
    *,
    layers: int = 4,
    heads: int = 4,
    steps: int = 80,
    every: int = 50,
    phase: float = 0.0,
    examples: bool = True,
    learning_rate: float = 0.001,
) -> Path:
    """Writes a whole run directory, and returns it."""
    path.mkdir(parents=True, exist_ok=True)
    write_lines(path / "focus.jsonl", focus_rows(layers, heads, steps, every, phase))
    write_lines(path / "metrics.jsonl", metrics_rows(steps * every, phase))
    config = {
        "task": {"data": {"source": "builtin"}, "model": {"layers": layers, "heads": heads}},
        "train": {"seed": 0, "optim": {"learning_rate": learning_rate}},
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "manifest.json").write_text(
        json.dumps({"python": "3.11", "packages": {"jax": "0.10.2"}})
    )
    if examples:
        (path / "focus_examples.json").write_text(json.dumps(examples_object()))
    return path
