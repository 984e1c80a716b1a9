"""A focus_examples.json with examples of every kind, made of formulas."""

import base64
import struct
import zlib

import numpy as np

REVIEW = "the film is a quiet , patient and finally devastating look at what people owe each other"
GERMAN = "ein Mann schläft in einem grünen Raum auf einem Sofa ."
ENGLISH = "a man sleeping in a green room on a couch ."


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


def shown_map(name: str, weights, module: str | None = None, head: int | None = None) -> dict:
    rounded = np.round(np.asarray(weights, float), 5).tolist()
    return {"name": name, "module": module, "head": head, "weights": rounded}


def _spread(count: int, seed: int, sharp: float = 2.0) -> np.ndarray:
    draws = np.exp(sharp * np.random.default_rng(seed).normal(size=count))
    return draws / draws.sum()


def review() -> dict:
    words = REVIEW.split()
    shares = np.linspace(0, 1, 11)

    def curve(scores) -> list[list[float]]:
        return np.stack([shares, scores], axis=1).round(4).tolist()

    return {
        "title": "A review that is right",
        "kind": "tokens",
        "tokens": words,
        "prediction": "positive",
        "label": "positive",
        "maps": [
            shown_map("attention pooling", _spread(len(words), 1), "pooling", 0),
            shown_map("gradient-weighted", np.random.default_rng(3).normal(0, 0.1, len(words))),
            shown_map("rollout", _spread(len(words), 2, 0.5)),
        ],
        "faithful": {
            "gradient-weighted": {
                "deletion": curve(0.95 - 0.8 * shares**0.4),
                "insertion": curve(0.2 + 0.7 * shares**0.4),
            },
            "attention pooling": {"deletion": curve(0.95 - 0.75 * shares**1.6)},
            "random": {
                "deletion": curve(0.95 - 0.75 * shares),
                "insertion": curve(0.2 + 0.7 * shares),
            },
        },
    }


def mistaken_review() -> dict:
    words = REVIEW.split()[::-1]
    return {
        "title": "A review that is wrong",
        "kind": "tokens",
        "tokens": words,
        "prediction": "negative",
        "label": "positive",
        "maps": [shown_map("attention pooling", _spread(len(words), 5), "pooling", 0)],
        "faithful": None,
    }


def translation() -> dict:
    source, target = GERMAN.split(), ENGLISH.split()
    rows, columns = np.arange(len(target))[:, None], np.arange(len(source))[None]
    near = np.exp(-np.abs(rows - columns * len(target) / len(source)))
    matrix, flat = near / near.sum(1, keepdims=True), np.sqrt(near)
    return {
        "title": "A sentence and its translation",
        "kind": "alignment",
        "source": source,
        "target": target,
        "prediction": ENGLISH,
        "label": "a man is sleeping on a couch in a green room .",
        "maps": [
            shown_map("cross attention", matrix, "decoder.layers.1.cross", 3),
            shown_map("cross attention, all heads", flat / flat.sum(1, keepdims=True)),
        ],
    }


def digit() -> dict:
    y, x = np.mgrid[:8, :8]
    pixels = 255 * np.exp(-((np.hypot(y - 3.5, x - 3.5) - 2.5) ** 2))
    weights = np.exp(-((y[:4, :4] - 1.5) ** 2 + (x[:4, :4] - 0.8) ** 2) / 2)
    return {
        "title": "A handwritten nought",
        "kind": "image",
        "image": png_of(pixels.astype(np.uint8)),
        "prediction": "0",
        "label": "0",
        "maps": [shown_map("rollout", weights)],
    }


def movement() -> dict:
    time = np.arange(140)
    values = np.stack([np.sin(time / 5), 0.3 * np.cos(time / 9) + 0.5])
    return {
        "title": "Two channels of an accelerometer",
        "kind": "series",
        "names": ["across (g)", "along (g)"],
        "values": values.round(4).tolist(),
        "prediction": "walking",
        "label": "walking",
        "maps": [shown_map("rollout", np.exp(-((time - 90) ** 2) / 200))],
    }


def faithful() -> dict:
    """Numbers over a test set: one map that is true, and one that is not."""
    true = {
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
    }
    untrue = true | {
        "deletion": 0.568,
        "margin": 0.003,
        "interval": [-0.012, 0.018],
        "insertion": 0.56,
        "agreement_gradients": 0.21,
        "agreement_leave_one_out": 0.18,
        "random_weights": 0.83,
    }
    return {"gradient-weighted": true, "attention pooling": untrue}


def examples_object() -> dict:
    return {
        "version": 1,
        "task": "sentiment of reviews",
        "examples": [review(), mistaken_review(), translation(), digit(), movement()],
        "faithful": faithful(),
    }
