"""Run directories as training would leave them, made of formulas."""

import json
from pathlib import Path

import numpy as np

from tests.focus.report.shown import examples_object


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _statistics(progress: float, layer: int, heads: int, phase: float) -> dict[str, list]:
    """What is recorded of a layer at a point, 0 to 1, of training."""
    head = np.arange(heads)
    share = 0.92 - 0.5 * progress * (1 + np.sin(head + phase)) / 2 - 0.02 * layer * progress
    share = np.where((head == 1) & (layer == 1) & (progress > 0.5), 0.03, share).clip(0.01, 1)
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
    found: dict[str, list] = {name: array.round(5).tolist() for name, array in values.items()}
    if layer == 1 and heads > 2 and 0.6 < progress < 0.7:
        found["max_logit"][2] = None  # not finite
    return found


def _event(kind: str, step: int, module: str, head: int | None, what: str, **more) -> dict:
    return {"kind": kind, "step": step, "module": module, "head": head, "what": what, **more}


def layout(modules: dict[str, int], every: int = 50, version: int = 1) -> dict:
    sizes = {name: {"heads": heads} for name, heads in modules.items()}
    return {"kind": "layout", "version": version, "every": every, "modules": sizes}


def focus_rows(layers: int, heads: int, steps: int, every: int, phase: float = 0.0) -> list[dict]:
    """The lines of a focus.jsonl with three warnings, one of them over, and a remedy."""
    names = [f"encoder.layers.{layer}.attention" for layer in range(layers)]
    end, second, last = steps * every, names[min(1, layers - 1)], names[-1]
    rows = [layout(dict.fromkeys(names, heads), every)]
    for step in range(every, end + 1, every):
        modules = {
            name: _statistics(step / end, layer, heads, phase) for layer, name in enumerate(names)
        }
        rows.append({"kind": "heads", "step": step, "modules": modules})
    sink = {"value": 0.97, "threshold": 0.95, "why": "0.97 of the weight is on key 0"}
    collapse = {"value": 0.03, "threshold": 0.05, "why": "the head sees single keys"}
    growth = {"value": None, "threshold": 50.0, "why": "the largest logit is not finite"}
    clip = {"strength": 0.8, "why": "logits of two heads passed 50; they were scaled by 0.8"}
    return [
        *rows,
        _event("warning", end // 4, last, heads - 1, "sink", **sink),
        _event("over", end // 3, last, heads - 1, "sink"),
        _event("warning", end // 2, second, 1, "entropy_collapse", **collapse),
        _event("warning", 3 * end // 5, second, 2, "logit_growth", **growth),
        _event("remedy", 13 * end // 20, second, None, "qk_clip", **clip),
    ]


def metrics_rows(steps: int, phase: float = 0.0) -> list[dict]:
    """The lines of a metrics.jsonl: training every 20 steps, ten evaluations."""
    rows = []
    noise = np.random.default_rng(int(10 * phase)).normal(0, 0.03, steps // 20 + 1)
    for place, step in enumerate(range(20, steps + 1, 20)):
        loss = 0.3 + 2.2 * float(np.exp(-step * (4 + phase) / steps)) + float(noise[place])
        rate = 1e-3 * min(1, step / 400) * (1 - step / (steps + 1))
        train = {"loss": loss, "grad_norm": 0.4 + loss / 3, "learning_rate": rate}
        rows.append({"kind": "train", "step": step, **train, "seconds": {"data": 0.01}})
        if place % max(1, steps // 200) == 0:
            scores = {"loss": loss + 0.08, "accuracy": 1 - loss / 2.8, "macro_f1": 0.97 - loss / 3}
            rows.append({"kind": "eval", "step": step, **scores, "seconds": {"eval": 0.5}})
    return rows


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
    model = {"layers": layers, "heads": heads}
    train = {"seed": 0, "optim": {"learning_rate": learning_rate}}
    config = {"task": {"data": {"source": "builtin"}, "model": model}, "train": train}
    (path / "config.json").write_text(json.dumps(config))
    (path / "manifest.json").write_text(json.dumps({"python": "3.11", "packages": {"jax": "0.10"}}))
    if examples:
        (path / "focus_examples.json").write_text(json.dumps(examples_object()))
    return path
