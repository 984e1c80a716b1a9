"""Questions in the JSON layout of SQuAD 1.1 and 2.0, plain or .gz."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from train.common.data.files import read_text
from train.common.spans.data import Span, SpanData, SpanQuestion, hold_out_titles
from train.common.spans.source import SpanSource

_NAMES = {str: "a string", int: "a whole number", list: "a list", bool: "true or false"}


def load_squad_files(config: SpanSource) -> SpanData:
    """Reads the training file and, where given, the validation and test files.

    What has no file of its own is held out of the training file, whole articles at random.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a file is not of the layout; names the place in it.
    """
    notes: list[str] = []
    train = read_squad(Path(config.source), notes)
    splits: dict[str, tuple[SpanQuestion, ...]] = {}
    missing: dict[str, float] = {}
    for split in ("validation", "test"):
        path = getattr(config, split)
        if path is None:
            missing[split] = getattr(config, f"{split}_fraction")
        else:
            splits[split] = read_squad(Path(path), notes)
    splits |= hold_out_titles(train, missing, config.split_seed)
    if missing:
        held = " and ".join(f"{split} ({len(splits[split])})" for split in missing)
        notes.append(f"held out of {config.source}, whole articles at random: {held}")
    return SpanData(splits, config.source, tuple(notes))


def read_squad(path: Path, notes: list[str]) -> tuple[SpanQuestion, ...]:
    """Reads one file.

    Args:
        path: the file.
        notes: gets a line for everything odd, counted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of the layout, or holds no question.
    """
    try:
        whole = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON, or not the whole file: {error}") from error
    odd: Counter[str] = Counter()
    found: dict[str, SpanQuestion] = {}
    for a, article in enumerate(_get(path, "", whole, "data", list)):
        title = _get(path, f"data[{a}]", article, "title", str, default="")
        for p, paragraph in enumerate(_get(path, f"data[{a}]", article, "paragraphs", list)):
            place = f"data[{a}].paragraphs[{p}]"
            context = _get(path, place, paragraph, "context", str)
            for q, item in enumerate(_get(path, place, paragraph, "qas", list)):
                question = _question(path, f"{place}.qas[{q}]", item, title, context, odd)
                if question.id in found:
                    raise ValueError(f"{path}: two questions have the id {question.id!r}")
                if question.question.strip() and context.strip():
                    found[question.id] = question
                else:
                    odd["skipped {} questions without a text or without words"] += 1
    if not found:
        raise ValueError(f"{path}: the file holds no question")
    notes += [f"{path}: {text.format(count)}" for text, count in odd.items()]
    return tuple(found.values())


def _question(
    path: Path, place: str, item: Any, title: str, context: str, odd: Counter[str]
) -> SpanQuestion:
    number = _get(path, place, item, "id", str)
    question = _get(path, place, item, "question", str)
    spans = []
    for i, answer in enumerate(_get(path, place, item, "answers", list, default=[])):
        here = f"{place}.answers[{i}]"
        text = _get(path, here, answer, "text", str)
        start = _get(path, here, answer, "answer_start", int)
        if not text.strip():
            raise ValueError(f"{path}, {here}: expected the text of an answer, got {text!r}")
        spans.append(_placed(text, start, context, odd))
    if _get(path, place, item, "is_impossible", bool, default=not spans) != (not spans):
        raise ValueError(
            f"{path}, {place}: is_impossible must be true where there are no answers and only "
            f"there; got {len(spans)} answers"
        )
    return SpanQuestion(number, title, context, question, tuple(spans))


def _placed(text: str, start: int, context: str, odd: Counter[str]) -> Span:
    """The answer where the file says; else where it stands in the text, next to that place."""
    if start >= 0 and context.startswith(text, start):
        return Span(text, start)
    before, after = context.rfind(text, 0, max(start, 0) + len(text)), context.find(text, start)
    places = [place for place in (before, after) if place >= 0]
    if not places:
        odd["{} answers do not stand in their text; they count as right, but teach nothing"] += 1
        return Span(text, -1)
    odd["{} answers did not stand where the file says; the nearest place was taken"] += 1
    return Span(text, min(places, key=lambda place: abs(place - start)))


def _get(path: Path, place: str, where: Any, name: str, kind: type, **default: Any) -> Any:
    """A field of a JSON object, of the wanted kind."""
    spot = f"{path}, {place}" if place else str(path)
    if not isinstance(where, dict):
        raise ValueError(f"{spot}: expected a JSON object, got {type(where).__name__}")
    if name not in where and "default" in default:
        return default["default"]
    if name not in where:
        raise ValueError(f"{spot}: expected {name!r}, got only {', '.join(where) or 'nothing'}")
    value = where[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{spot}: expected {_NAMES[kind]} as {name!r}, got {value!r:.60}")
    return value
