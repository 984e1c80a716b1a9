"""`StoryDataConfig`: `--data builtin` or a path, as one `StoryData`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from train.common.data.held_out import SPLITS
from train.common.stories.data import Story, StoryData
from train.common.stories.files import load_story_files
from train.common.stories.source import StorySource


@dataclass(frozen=True)
class StoryDataConfig(StorySource):
    """Which stories, and how they are split and cut.

    Raises:
        ValueError: a number is out of range, or the source can't hold stories.
    """

    def load(self) -> StoryData:
        """Reads the whole data set into memory.

        Raises:
            ValueError: the data can't be what was asked for; names the file and line.
            FileNotFoundError: a path does not exist.
        """
        data = load_builtin(self) if self.source == "builtin" else load_story_files(self)
        if self.max_train is not None:
            train = data.splits["train"]
            order = np.random.default_rng(self.split_seed).permutation(len(train))
            chosen = tuple(train[i] for i in order[: self.max_train])
            data = replace(data, splits={**data.splits, "train": chosen})
        return data.shortened(self.max_sentences).with_answer_note()


def load_builtin(config: StorySource) -> StoryData:
    """Reads our own stories, the questions that they do not answer left out.

    Raises:
        ValueError: there is no such kind of question.
    """
    # Imported late: reading files should not wait for tensorflow-datasets.
    from train.common.builders.stories import prepared
    from train.common.builders.story_world import KINDS
    from train.common.data.catalogue import read_records

    kinds = [kind for kind in KINDS if kind != "unanswerable"]
    if unknown := sorted(set(config.tasks) - set(kinds)):
        raise ValueError(f"--data.tasks {unknown[0]}: builtin has {', '.join(kinds)}")
    builder = prepared(config.prepared_dir)
    splits: dict[str, tuple[Story, ...]] = {}
    for split in SPLITS:
        stories = []
        for record in read_records(builder, split):
            kind = KINDS[record["kind"]]
            if kind in (config.tasks or kinds):
                text = {k: record[k].decode() for k in ("story", "question", "answer")}
                supporting = tuple(map(int, record["supporting"].split()))
                sentences = tuple(text["story"].split("\n"))
                stories.append(Story(sentences, text["question"], text["answer"], supporting, kind))
        splits[split] = tuple(stories)
    return StoryData(splits, builder.info.full_name)
