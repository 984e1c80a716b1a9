"""What it takes to answer in new dialogues with a finished run that chooses among candidates."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from train.common.dialogue.batches import DialogueEncoder, context_of
from train.common.dialogue.dialogues import Dialogue, DialogueData, Turn, Utterance, utterances
from train.common.dialogue.models import SelectorConfig
from train.common.dialogue.task import accuracies, scored
from train.common.dialogue.words import DialogueWords
from train.common.files import write_json
from train.common.result import Which, load_model

WORDS, ANSWERS = "words.json", "answers.json"
_BATCH, _OTHERS = 128, 3


@dataclass(frozen=True)
class Choice:
    """What the model answers at one turn, and where it looked."""

    context: tuple[Utterance, ...]
    """What the model read, the utterance to answer last."""
    answer: str
    probability: float
    others: tuple[tuple[str, float], ...]
    """The next likeliest answers with their probabilities."""
    weights: tuple[tuple[float, ...], ...]
    """By head, hops first, then pointers: the weight of each utterance; each sums to 1."""

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    def as_text(self) -> str:
        """A few lines for people: what it looked at most, the answer and the next likeliest."""
        largest = np.max(self.weights, axis=0)
        lines = [
            f"  {weight:.2f} {utterance.speaker:>4}: {utterance.text}"
            for weight, utterance in zip(largest, self.context, strict=True)
            if weight >= 0.05
        ]
        others = ", ".join(f"{answer} ({share:.3f})" for answer, share in self.others)
        return "\n".join([*lines, f"{self.answer} ({self.probability:.3f}; then {others})"])


class Chooser:
    """A model with what turns dialogues into its input and its output into answers.

    Args:
        model: in eval mode.
        encoder: as in training.
        candidates: the answers to choose from.
        knowledge: rows of the knowledge base.
    """

    def __init__(
        self,
        model: nnx.Module,
        encoder: DialogueEncoder,
        candidates: Sequence[str],
        knowledge: Sequence[str],
    ):
        self.candidates, self.knowledge = tuple(candidates), tuple(knowledge)
        self._encoder = encoder
        graph, state = nnx.split(model)
        bags = jnp.asarray(encoder.bags(self.candidates))

        def answer(state: Any, batch: Any) -> tuple[jax.Array, ...]:
            model: Any = nnx.merge(graph, state)
            scores, weights = scored(model, batch, bags)
            likeliest = jax.lax.top_k(scores, min(1 + _OTHERS, len(self.candidates)))[1]
            shares = jnp.take_along_axis(jax.nn.softmax(scores), likeliest, axis=1)
            return likeliest, shares, weights

        forward = jax.jit(answer)
        self._forward: Callable[[Any], Any] = lambda batch: forward(state, batch)

    @classmethod
    def load(cls, run_dir: Path, described: dict[str, Any], which: Which = "best") -> Chooser:
        """Reads the model of a run directory, finished or not.

        Args:
            run_dir: the directory.
            described: the task's part of its config.
            which: the checkpoint.

        Raises:
            ValueError: the directory is not whole, or its checkpoint is of another config.
            BrokenCheckpointError: it has no checkpoint that can be read.
        """
        missing = [name for name in (WORDS, ANSWERS) if not (run_dir / name).is_file()]
        if missing:
            raise ValueError(f"{run_dir} has no {missing[0]}; nothing can be answered without it")
        words = DialogueWords.load(run_dir / WORDS)
        side = json.loads((run_dir / ANSWERS).read_text(encoding="utf-8"))
        config = SelectorConfig(**described["model"])

        def build(rngs: nnx.Rngs) -> nnx.Module:
            return config.build(size=words.size, known=words.known, rngs=rngs)

        encoder = DialogueEncoder(words, described["max_history"])
        model = load_model(build, run_dir, which=which)
        return cls(model, encoder, side["candidates"], side["knowledge"])

    def choose(self, contexts: Sequence[Sequence[Utterance]]) -> list[Choice]:
        """Answers at some turns, in their order.

        Args:
            contexts: of each: rows and utterances, the one to answer last.
        """
        contexts = [context[-self._encoder.max_history :] for context in contexts]
        found: dict[int, Choice] = {}
        for places, likeliest, shares, weights in self._batches(contexts):
            for i, best, share, weight in zip(places, likeliest, shares, weights, strict=True):
                ranked = [(self.candidates[c], float(p)) for c, p in zip(best, share, strict=True)]
                length = len(contexts[i])
                found[i] = Choice(
                    tuple(contexts[i]),
                    *ranked[0],
                    tuple(ranked[1:]),
                    tuple(tuple(head[:length].tolist()) for head in weight),
                )
        return [found[i] for i in range(len(contexts))]

    def right(self, dialogues: Sequence[Dialogue]) -> tuple[np.ndarray, np.ndarray]:
        """Which answers are right, bool, and the number of each one's dialogue, `[answers]`."""
        contexts, wanted, number = [], [], []
        for d, dialogue in enumerate(dialogues):
            said, places = utterances(dialogue)
            contexts += [said[: place + 1] for place in places]
            wanted += [turn.bot for turn in dialogue]
            number += [d] * len(dialogue)
        right = np.zeros(len(contexts), bool)
        for places, likeliest, _, _ in self._batches(contexts):
            for i, best in zip(places, likeliest, strict=True):
                right[i] = self.candidates[best[0]] == wanted[i]
        return right, np.array(number)

    def scores(self, dialogues: Sequence[Dialogue]) -> dict[str, float]:
        """`accuracy` of the answers and `dialogue_accuracy`."""
        return accuracies(*self.right(dialogues))

    def stream(self, turns: Sequence[Turn], user: str, rows: Sequence[str]) -> Iterator[str]:
        """Yields the answer word by word, spaces included; for a chat."""
        for number, word in enumerate(
            self.choose([context_of(turns, user, rows)])[0].answer.split(" ")
        ):
            yield f" {word}" if number else word

    def _batches(self, contexts: Sequence[Sequence[Utterance]]) -> Iterator[tuple[Any, ...]]:
        """Yields places, likeliest candidates, their shares and the weights, batch by batch."""
        # Histories of one length together: padding is lost time, and each shape compiles anew.
        order = np.argsort([len(context) for context in contexts], kind="stable")
        size = min(_BATCH, len(order))
        for start in range(0, len(order), size):
            real = order[start : start + size].tolist()
            batch = self._encoder.pad([contexts[i] for i in np.resize(real, size)])
            results = jax.device_get(self._forward(batch))
            yield (real, *(result[: len(real)] for result in results))


def save_chooser_side(run_dir: Path, words: DialogueWords, data: DialogueData) -> None:
    """Writes words, candidates and knowledge into a run directory that does not have them yet."""
    if not (run_dir / ANSWERS).exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        words.save(run_dir / WORDS)
        side = {"candidates": data.candidates, "knowledge": data.knowledge}
        write_json(run_dir / ANSWERS, side)
