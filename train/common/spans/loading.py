"""`SpanDataConfig`: `--data builtin`, `tfds:<name>` or a path, as one `SpanData`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from train.common.data.held_out import SPLITS
from train.common.spans.data import Span, SpanData, SpanQuestion, hold_out_titles
from train.common.spans.source import SpanSource
from train.common.spans.squad_files import load_squad_files


@dataclass(frozen=True)
class SpanDataConfig(SpanSource):
    """Which texts and questions, and how they are split.

    Raises:
        ValueError: a fraction is out of range or options contradict each other.
    """

    def load(self) -> SpanData:
        """Reads the whole data set into memory.

        Raises:
            ValueError: the data can't be what was asked for; names the file and place.
            FileNotFoundError: a path does not exist.
            ConnectionError: a `tfds:` data set has to be fetched and can't be; says what to do.
            MissingExtraError: a `tfds:` data set needs TensorFlow.
        """
        if self.source == "builtin":
            data = load_builtin(self)
        else:
            data = load_squad_files(self) if self.is_file else load_catalogue(self)
        return data.limited(self.max_train, self.split_seed).with_leak_note()


def load_builtin(config: SpanSource) -> SpanData:
    """Reads our own stories as texts; the answer is where the last link of the chain names it."""
    # Imported late, as in load_catalogue: reading files should not wait for tensorflow-datasets.
    from train.common.builders.stories import prepared
    from train.common.data.catalogue import read_records

    builder = prepared(config.prepared_dir)
    splits = {}
    for split in SPLITS:
        questions = []
        for number, record in enumerate(read_records(builder, split)):
            text = {k: record[k].decode() for k in ("story", "question", "answer")}
            context = text["story"].replace("\n", " ")
            answers: tuple[Span, ...] = ()
            if text["answer"]:
                last = int(record["supporting"].split()[-1])
                sentences = text["story"].split("\n")
                start = sum(len(sentence) + 1 for sentence in sentences[:last])
                answers = (Span(text["answer"], context.index(text["answer"], start)),)
            name = f"{split}-{number}"
            questions.append(SpanQuestion(name, name, context, text["question"], answers))
        splits[split] = tuple(questions)
    return SpanData(splits, builder.info.full_name)


def load_catalogue(config: SpanSource) -> SpanData:
    """Reads a data set of the catalogue with the features of its `squad`.

    Its validation split is the test split here, as everybody reports it; what we validate on is
    held out of the training articles.

    Raises:
        ValueError: no such data set, or its features are others.
        ConnectionError: it has to be fetched and the network does not answer.
        MissingExtraError: preparing or reading it needs TensorFlow.
    """
    from train.common.data.catalogue import catalogue_builder, read_records

    builder = catalogue_builder(config.source.removeprefix("tfds:"), config.prepared_dir)
    features, wanted = set(builder.info.features), {"id", "context", "question", "answers"}
    if not wanted <= features or not {"train", "validation"} <= set(builder.info.splits):
        raise ValueError(
            f"{builder.info.full_name}: expected the features {', '.join(sorted(wanted))} and the "
            f"splits train and validation, as squad has; got {', '.join(sorted(features))} and "
            f"{', '.join(builder.info.splits)}"
        )
    train = tuple(map(_record, read_records(builder, "train")))
    fractions = {"validation": config.validation_fraction}
    splits = hold_out_titles(train, fractions, config.split_seed)
    splits["test"] = tuple(map(_record, read_records(builder, "validation")))
    notes = (
        "its validation split is the test split here; held out of the training articles: "
        f"validation ({len(splits['validation'])})",
    )
    return SpanData(splits, builder.info.full_name, notes)


def _record(record: dict[str, Any]) -> SpanQuestion:
    answers = record["answers"]
    pairs = zip(answers["text"], answers["answer_start"], strict=True)
    return SpanQuestion(
        record["id"].decode(),
        record.get("title", b"").decode(),
        record["context"].decode(),
        record["question"].decode(),
        tuple(Span(text.decode(), int(start)) for text, start in pairs),
    )
