"""Dialogues as pairs of texts, and answers written token by token."""

from __future__ import annotations

import numpy as np
import pytest
from flax import nnx

from attnjax.models.decode import GREEDY, Sampling
from train.common.dialogue.batches import context_of
from train.common.dialogue.chat import converse
from train.common.dialogue.dialogues import SILENCE, DialogueData, Turn
from train.common.dialogue.knowledge import KnowledgeBase
from train.common.dialogue.pairs import ChatWriter, DialogueScores, as_pairs, source_of
from train.common.pairs.models import SeqModelConfig
from train.common.pairs.run import DecodingConfig, Writer
from train.common.pairs.tokenise import SeqTokeniserConfig
from train.common.pairs.tokens import PairTokensConfig

DIALOGUE = (Turn("hi", "hello"), Turn("i like tea", "so do i", ("tea is hot",)))
DATA = DialogueData(
    dict.fromkeys(("train", "validation", "test"), (DIALOGUE,)), ("hello", "so do i"), "here"
)


def test_a_source_begins_with_what_was_said_last():
    pairs = as_pairs(DATA, history=3)
    assert pairs.splits["test"] == (
        ("user: hi", "hello"),
        ("user: i like tea base: tea is hot bot: hello", "so do i"),
    )
    assert as_pairs(DATA, history=1).splits["train"][1].source == "user: i like tea"


def test_scores_count_words():
    scores = DialogueScores()(["a b b", "x", ""], ["b a c", "x", ""])
    np.testing.assert_allclose(scores["f1"], 100 * (2 / 3 + 1 + 1) / 3)
    np.testing.assert_allclose(scores["exact"], 200 / 3)
    assert set(DialogueScores().signatures()) == set(scores)


@pytest.fixture(scope="module")
def untrained():
    """An encoder-decoder with a vocabulary of characters, and its tokenisers."""
    tokens = PairTokensConfig(
        tokens=SeqTokeniserConfig(kind="char"), max_source=48, max_target=6
    ).train(as_pairs(DATA, history=3))
    config = SeqModelConfig(features=8, heads=2, encoder_layers=1, decoder_layers=1)
    model = config.build(tokens, rngs=nnx.Rngs(0))
    model.eval()
    return model, tokens


def test_what_is_streamed_is_what_is_written(untrained):
    model, tokens = untrained
    chat = ChatWriter(model, tokens, 3, GREEDY, seed=0)
    pieces = list(chat.stream(DIALOGUE[:1], "i like tea", ("tea is hot",)))
    writer = Writer(model, tokens, DecodingConfig(beams=1))
    source = source_of(context_of(DIALOGUE[:1], "i like tea", ("tea is hot",)), 3)
    assert "".join(pieces) == writer.write([source])[0].text
    drawn = [
        "".join(ChatWriter(model, tokens, 3, Sampling(5.0), seed).stream((), "hi", ()))
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


class Echo:
    """Answers with how many turns there were, calls for tea, and tells rows."""

    def stream(self, turns, user, rows):
        if user == "tea":
            yield from ("api_call", " tea")
        else:
            yield f"{len(turns)} {user} {len(rows)}"


def test_a_chat_goes_on_after_a_call():
    written: list[str] = []
    knowledge = KnowledgeBase.of(["green kind tea", "green price low", "mocha kind coffee"])
    lines = ["hi\n", "tea", "", " /reset ", "ho"]
    converse(Echo(), lines, written.append, knowledge=knowledge)
    assert "".join(written).splitlines() == [
        "0 hi 0",
        "api_call tea",
        "[2 rows of the knowledge base fit]",
        f"2 {SILENCE} 2",
        f"3 {SILENCE} 0",
        "[a new dialogue]",
        "0 ho 0",
    ]


def test_a_call_that_finds_nothing_waits_for_the_user():
    written: list[str] = []
    converse(Echo(), ["tea", "hm"], written.append, knowledge=KnowledgeBase.of(["a kind b"]))
    assert "".join(written).splitlines() == [
        "api_call tea",
        "[0 rows of the knowledge base fit]",
        "1 hm 0",
    ]
    written.clear()
    converse(Echo(), ["tea", "/quit", "hm"], written.append)
    assert "".join(written) == "api_call tea\n"
