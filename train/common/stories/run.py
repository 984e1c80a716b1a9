"""What it takes to answer questions about new stories with a finished run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from train.common.files import write_json
from train.common.result import Which, load_model
from train.common.stories.batches import StoryEncoder
from train.common.stories.data import Story
from train.common.stories.models import StoryModelConfig
from train.common.stories.scores import StoryScores
from train.common.tokenise import TextTokeniser, TokeniserConfig

TOKENISER, STORIES = "tokeniser.json", "stories.json"
_BATCH = 128
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\s*\n\s*")


@dataclass(frozen=True)
class StoryAnswer:
    """What the model says to one question."""

    sentences: tuple[str, ...]
    question: str
    answer: str
    probability: float
    weights: tuple[tuple[float, ...], ...]
    """For each step of the model, how much the question looked at each sentence."""

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    def as_text(self) -> str:
        """A few lines for people: each sentence with its weight in each step, then the answer."""
        rows = zip(self.sentences, zip(*self.weights, strict=True), strict=True)
        lines = [f"  {' '.join(f'{w:.2f}' for w in weights)}  {text}" for text, weights in rows]
        return "\n".join([*lines, f"{self.question} {self.answer} ({self.probability:.3f})"])


class StoryAnswerer:
    """A model with what turns stories into its input and its output into answers.

    Args:
        model: in eval mode.
        encoder: as in training.
        max_sentences: as in training; of longer stories the oldest sentences are left out.
    """

    def __init__(self, model: nnx.Module, encoder: StoryEncoder, max_sentences: int):
        self._encoder, self._max_sentences = encoder, max_sentences
        graph, state = nnx.split(model)

        def answer(state: Any, story: jax.Array, question: jax.Array) -> Any:
            model: Any = nnx.merge(graph, state)
            return model(story, question, return_weights=True)

        forward = jax.jit(answer)
        self._forward: Callable[[Any], Any] = lambda batch: forward(
            state, batch["story"], batch["question"]
        )

    @classmethod
    def load(cls, run_dir: Path, described: dict[str, Any], which: Which = "best") -> StoryAnswerer:
        """Reads the answerer of a run directory, finished or not.

        Args:
            run_dir: the directory.
            described: the task's part of its config.
            which: the checkpoint.

        Raises:
            ValueError: the directory is not whole, or its checkpoint is of another config.
            BrokenCheckpointError: it has no checkpoint that can be read.
        """
        missing = [name for name in (TOKENISER, STORIES) if not (run_dir / name).is_file()]
        if missing:
            raise ValueError(f"{run_dir} has no {missing[0]}; nothing can be answered without it")
        side = json.loads((run_dir / STORIES).read_text(encoding="utf-8"))
        encoder = StoryEncoder(
            TextTokeniser.load(run_dir / TOKENISER, TokeniserConfig().max_tokens),
            side["answers"],
            side["words"],
        )
        max_sentences = described["data"]["max_sentences"]
        config = StoryModelConfig(**described["model"])

        def build(rngs: nnx.Rngs) -> nnx.Module:
            return build_reader(config, encoder, max_sentences, rngs)

        return cls(load_model(build, run_dir, which=which), encoder, max_sentences)

    def answer(self, stories: Sequence[Story]) -> Iterator[StoryAnswer]:
        """Answers questions, in their order."""
        stories = [s._replace(sentences=s.sentences[-self._max_sentences :]) for s in stories]
        encoded = self._encoder.encode(stories)
        # Stories of one length together: padding is lost time, and each shape compiles anew.
        order = np.argsort([len(e.sentences) for e in encoded], kind="stable")
        found: dict[int, StoryAnswer] = {}
        for start in range(0, len(order), _BATCH):
            real = order[start : start + _BATCH]
            batch = self._encoder.pad([encoded[i] for i in np.resize(real, _BATCH)])
            logits, weights = jax.device_get(self._forward(batch))
            probabilities = np.asarray(jax.nn.softmax(logits))
            for i, shares, weight in zip(real.tolist(), probabilities, weights, strict=False):
                best = int(shares.argmax())
                story = stories[i]
                found[i] = StoryAnswer(
                    story.sentences,
                    story.question,
                    self._encoder.answers[best],
                    float(shares[best]),
                    tuple(tuple(row[: len(story.sentences)].tolist()) for row in weight),
                )
        for i in range(len(stories)):
            yield found[i]

    def scored(self, stories: Sequence[Story]) -> tuple[StoryScores, list[StoryAnswer]]:
        """The errors on questions whose answer is known, and the answers they come from."""
        answers = list(self.answer(stories))
        return StoryScores.of(stories, [answer.answer for answer in answers]), answers


def build_reader(
    config: StoryModelConfig, encoder: StoryEncoder, max_sentences: int, rngs: nnx.Rngs
) -> Any:
    """Builds the model that fits an encoder's output."""
    return config.build(
        vocabulary=encoder.tokeniser.size,
        words=encoder.words,
        answers=len(encoder.answers),
        max_sentences=max_sentences,
        rngs=rngs,
    )


def save_story_side(run_dir: Path, encoder: StoryEncoder) -> None:
    """Writes words and answers into a run directory that does not have them yet."""
    if not (run_dir / STORIES).exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        encoder.tokeniser.save(run_dir / TOKENISER)
        write_json(run_dir / STORIES, {"answers": list(encoder.answers), "words": encoder.words})


def as_story(context: str, question: str) -> Story:
    """A story from running text, cut after `.`, `!` and `?` and at line ends.

    Raises:
        ValueError: the text or the question is empty.
    """
    sentences = tuple(part.strip() for part in _SENTENCE_END.split(context) if part.strip())
    if not sentences or not question.strip():
        raise ValueError(
            f"expected a story and a question about it, got {context!r} and {question!r}"
        )
    return Story(sentences, question.strip(), "", (), "")
