"""Dialogues out of files, transcripts, the catalogue and our own builder; and what is refused."""

from __future__ import annotations

import gzip
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.train.toy_dialogues import write_dialogues
from train.common.builders import booking_world
from train.common.dialogue import tfds as dialogue_tfds
from train.common.dialogue.baseline import likest_turn
from train.common.dialogue.batches import (
    NO_CANDIDATE,
    SPEAKERS,
    DialogueBatches,
    DialogueEncoder,
    context_of,
)
from train.common.dialogue.data import DialogueDataConfig
from train.common.dialogue.dialogues import (
    SILENCE,
    DialogueData,
    Turn,
    hold_out_dialogues,
    utterances,
)
from train.common.dialogue.knowledge import KnowledgeBase, read_knowledge
from train.common.dialogue.lines import read_answers, read_dialogues
from train.common.dialogue.words import DialogueWords, DialogueWordsConfig

BABI = (
    "1 hi\thello\n2 anna R_phone anna_phone\n3 anna R_town oslo\n4 <SILENCE>\thow about anna\n"
    "\n1 good day\thello\n"
)


def test_rows_belong_to_the_turn_after_them():
    notes: list[str] = []
    assert read_dialogues(BABI, "f", notes, format="auto") == [
        (
            Turn("hi", "hello"),
            Turn(SILENCE, "how about anna", ("anna R_phone anna_phone", "anna R_town oslo")),
        ),
        (Turn("good day", "hello"),),
    ]
    assert notes == []


def test_rows_without_an_answer_are_skipped_and_counted():
    notes: list[str] = []
    text = "1 hi\thello\r\n2 anna R_town oslo\r\n1 anna R_town oslo\r\n1 hi\thello"
    assert read_dialogues(text, "f", notes, format="babi") == [(Turn("hi", "hello"),)] * 2
    assert notes == ["f: skipped 2 rows of knowledge that no answer follows"]


def test_transcripts_join_what_one_speaker_says():
    text = "Ann: hi\nAnn: there\nBob: hello\nAnn: 10:30 then?\nBob: yes\nBob: fine\nAnn: bye\n\n\n"
    text += "Ann: alone\n\nCarl: so\nAnn: what: this"
    notes: list[str] = []
    assert read_dialogues(text, "f", notes, format="auto") == [
        (Turn("hi there", "hello"), Turn("10:30 then?", "yes fine")),
        (Turn("so", "what: this"),),
    ]
    assert notes == [
        "f: skipped the last words of 1 conversations: no answer",
        "f: skipped 1 conversations without an answer",
    ]


def test_transcripts_can_name_the_bot():
    text = "Bob: welcome\nAnn: hi\nCarl: ho\nBob: hello you"
    assert read_dialogues(text, "f", [], format="transcript", bot="Bob") == [
        (Turn(SILENCE, "welcome"), Turn("hi ho", "hello you"))
    ]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("1 hi\thello\nno number\n", {}, "f, line 2: expected `ID user<TAB>bot`"),
        ("1 hi\thello\n3 bye\tbye\n", {}, "f, line 2: expected the number 2, or 1"),
        ("2 hi\thello\n", {}, "f, line 1: expected the number 1, or 1"),
        ("1 hi\thello\tyou\n", {}, "f, line 1: expected what the user says, one tab"),
        ("1 \thello\n", {}, "f, line 1: expected what the user says, one tab"),
        ("1 hi\t\n", {}, "f, line 1: expected what the user says, one tab"),
        ("1 only rows here\n", {}, "f: there is no dialogue in it"),
        ("", {}, "f: there is no dialogue in it"),
        ("Ann: hi\nno name\n", {}, "f, line 2: expected `NAME: text`"),
        ("Ann: hi\nBob:\n", {}, "f, line 2: expected `NAME: text`"),
        ("Ann: hi\nBob: ho\n", {"bot": "Carl"}, "--data.bot Carl says nothing; the speakers are"),
        ("1 hi\thello\n", {"bot": "Ann"}, "goes with transcripts only"),
        ("Ann: hi\nBob: ho\n", {"format": "babi"}, "f, line 1: expected `ID user<TAB>bot`"),
    ],
)
def test_lines_that_are_no_dialogues_are_refused(text, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_dialogues(text, "f", [], **{"format": "auto", **options})


def test_candidates_have_numbers_or_not():
    assert read_answers("1 hello\n1 api_call a\n\n", "f") == ("hello", "api_call a")
    assert read_answers("hello\n2 rooms\n", "f") == ("hello", "2 rooms")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: read_answers("1 a\n1 b\n1 a\n", "f"), "f, line 3: the candidate 'a' stands in"),
        (lambda: read_answers("\n", "f"), "f: there is no candidate in it"),
        (lambda: read_knowledge("1 anna R_town\n", "f"), "f, line 1: expected `entity attribute"),
        (lambda: read_knowledge("\n", "f"), "f: there is no row of knowledge in it"),
    ],
)
def test_what_belongs_to_dialogues_is_checked(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_calls_are_answered_with_what_has_all_values():
    text = "1 a R_town\toslo\n1 a R_price\tlow\n1 b R_town\toslo\n1 b R_price\thigh\n"
    knowledge = KnowledgeBase.of(read_knowledge(text, "f"))
    assert knowledge.ask("api_call oslo low") == ("a R_town oslo", "a R_price low")
    assert len(knowledge.ask("api_call oslo") or ()) == 4
    assert knowledge.ask("api_call riga") == knowledge.ask("api_call") == ()
    assert knowledge.ask("hello oslo") is None


def test_files_make_splits_candidates_and_knowledge(tmp_path: Path):
    files = write_dialogues(tmp_path)
    names = {name: str(path) for name, path in files.items() if name != "train"}
    data = DialogueDataConfig(source=str(files["train"]), **names).load()
    assert list(data.splits) == ["train", "validation", "test", "oov"]
    assert len(data.knowledge) == 46 and data.knowledge[0] == "red_shirt R_colour red"
    assert len(data.candidates) == 1 + 3 * 23
    assert data.with_notes().notes  # a few colours in so few words: test dialogues repeat training
    again = DialogueDataConfig(source=str(files["train"]), **names).load()
    assert again.fingerprint == data.fingerprint
    fewer = DialogueDataConfig(source=str(files["train"]), max_train=7, **names).load()
    assert len(fewer.splits["train"]) == 7 and fewer.fingerprint != data.fingerprint


def test_what_has_no_file_is_held_out(tmp_path: Path):
    files = write_dialogues(tmp_path)
    packed = tmp_path / "train.txt.gz"
    packed.write_bytes(gzip.compress(files["train"].read_bytes()))
    data = DialogueDataConfig(source=str(packed)).load()
    assert list(data.splits) == ["train", "validation", "test"]
    assert not set(data.splits["train"]) & {*data.splits["validation"], *data.splits["test"]}
    assert "held out of the training dialogues at random" in data.notes[0]
    assert data.candidates == tuple(sorted({t.bot for d in data.splits["train"] for t in d}))


def test_equal_dialogues_stay_together():
    dialogues = [(Turn("hi", str(i % 10)),) for i in range(50)]
    splits = hold_out_dialogues(dialogues, {"test": 0.3}, seed=1)
    assert len(splits["test"]) == 15 and len(splits["train"]) == 35
    assert not set(splits["test"]) & set(splits["train"])


@pytest.mark.parametrize(
    ("write", "options", "message"),
    [
        (b"\x1f\x8b broken", {"name": "a.txt.gz"}, "not a whole gzip file"),
        (b"1 hi\thall\xf6\n", {}, "line 1: not utf-8 text"),
        (b"1 hi\thello\n", {"encoding": "klingon"}, "--data.encoding klingon"),
        (b"1 hi\thello\n", {"test": "nowhere.txt"}, "nowhere.txt: no such file"),
        (b"1 hi\thello\n", {}, "the train split holds no dialogues"),
    ],
)
def test_files_that_cannot_be_read_are_refused(write, options, message, tmp_path):
    options = dict(options)
    path = tmp_path / options.pop("name", "a.txt")
    path.write_bytes(write)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        DialogueDataConfig(source=str(path), **options).load()


def _data(train: list[str], candidates: tuple[str, ...], **options) -> DialogueData:
    dialogues = tuple((Turn("hi", answer),) for answer in train)
    splits = {"train": dialogues, "validation": dialogues[:1], "test": ((Turn("hi", "z"),),)}
    return DialogueData(splits, candidates, "somewhere", **options)


def test_answers_out_of_reach_are_said():
    assert _data(["a", "b"], ("a", "b")).with_notes().notes == (
        "1 of 1 validation dialogues also stand in the training split",
        "1 of 1 test answers are no candidates; they count as wrong",
    )
    with pytest.raises(ValueError, match="1 training answers are no candidates, the first is 'b'"):
        _data(["a", "b"], ("a", "c")).with_notes()
    with pytest.raises(ValueError, match="at least two answers"):
        _data(["a"], ("a",))
    with pytest.raises(ValueError, match="the candidate 'a' stands twice"):
        _data(["a"], ("a", "b", "a"))


def test_the_folder_of_dialog_babi_is_known(shared_data):
    folder = shared_data("dialogue/dialog_babi")
    data = DialogueDataConfig(source=str(folder), task=4).load().with_notes()
    assert {split: len(d) for split, d in data.splits.items()} == dict.fromkeys(
        ("train", "validation", "test", "oov"), 1000
    )
    assert len(data.candidates) == 4212 and len(data.knowledge) == 8400
    assert sum(map(len, data.splits["test"])) == 3498
    assert not [note for note in data.notes if "no candidates" in note]


def test_words_of_names_come_apart_unless_told_otherwise():
    text = "<SILENCE> How about the_Blue_heron? I'd say co-op 7stars"
    assert DialogueWordsConfig().split(text) == [
        *("<silence>", "how", "about", "the", "blue", "heron", "?", "i'd", "say", "co-op", "7stars")
    ]
    whole = DialogueWordsConfig(names="whole").split(text)
    assert whole[3:5] == ["the_blue_heron", "?"]


def test_words_of_candidates_have_numbers_but_no_embedding(tmp_path: Path):
    data = _data(["a b", "b c"], ("a b", "b c", "x_y b"), knowledge=("k town oslo",))
    words = DialogueWordsConfig(max_words=2).collect(data)
    assert words.known == 2 + 4  # hi, a, b, c
    assert words.size == words.known + 5  # x, y, k, town, oslo
    assert words.encode("b nonsense oslo").tolist()[1] == 1
    assert words.encode("oslo")[0] >= words.known
    assert words.encode("...!")[0] == 1 and words.encode("").tolist() == [1]
    assert words.is_cut("a b c") and not words.is_cut("a b")
    words.save(tmp_path / "words.json")
    loaded = DialogueWords.load(tmp_path / "words.json")
    np.testing.assert_array_equal(loaded.encode("oslo b"), words.encode("oslo b"))
    rare = DialogueWordsConfig(min_count=2).collect(data)
    assert rare.known == 2 + 2 and rare.encode("a")[0] >= rare.known


def test_batches_hold_what_was_said_before():
    dialogue = (
        Turn("hi", "hello"),
        Turn(SILENCE, "how about anna", ("anna town oslo", "anna price low")),
        Turn("no", "then not"),
    )
    splits = {"train": (dialogue, dialogue[:1]), "validation": (dialogue,), "test": (dialogue,)}
    data = DialogueData(splits, ("hello", "how about anna"), "here")
    encoder = DialogueEncoder(DialogueWordsConfig().collect(data), max_history=5)
    batches = DialogueBatches(data, encoder)
    (batch,) = batches.eval_batches("test", batch_size=4)
    assert batch["answer"].tolist() == [0, 1, NO_CANDIDATE, 0]
    assert batch["weight"].tolist() == [1, 1, 1, 0] and batch["dialogue"].tolist() == [0] * 4
    assert batch["history"].shape == (4, 16, 24)

    def said(place: int, m: int) -> list[int]:
        ids = batch["history"][place, m]
        return ids[ids > 0].tolist()

    texts = ["hi", "hello", "anna town oslo", "anna price low", SILENCE]
    assert [said(1, m) for m in range(5)] == [encoder.encode(t).tolist() for t in texts]
    assert batch["age"][1, :5].tolist() == [2, 1, 0, 0, 0]
    names = [SPEAKERS[s] for s in batch["speaker"][1, :5]]
    assert names == ["user", "bot", "base", "base", "user"]
    np.testing.assert_array_equal(batch["query"][1][:1], encoder.encode(SILENCE))
    # Of the seven before the last answer, the five newest are read.
    assert said(2, 0) == encoder.encode("anna town oslo").tolist()
    assert batch["age"][2, :5].tolist() == [2, 2, 2, 1, 0]
    assert not batch["history"][2, 5:].any()
    (note, *_) = batches.notes(data)
    assert note == (
        "1 of 4 train answers have more than 5 utterances and rows before them; the oldest are not "
        "read"
    )


def test_a_share_of_a_batch_is_part_of_the_whole(tmp_path: Path):
    files = write_dialogues(tmp_path)
    data = DialogueDataConfig(source=str(files["train"])).load()
    encoder = DialogueEncoder(DialogueWordsConfig().collect(data), 100)
    batches = DialogueBatches(data, encoder)
    whole = next(batches.train_batches(batch_size=8, seed=3, start_step=5))
    rows = np.array([1, 6])
    share = next(batches.train_batches(batch_size=8, seed=3, start_step=5, rows=rows))
    for name in whole:
        np.testing.assert_array_equal(share[name], whole[name][rows])
    later = batches.train_batches(batch_size=8, seed=3, start_step=4)
    next(later)
    np.testing.assert_array_equal(next(later)["history"], whole["history"])


def test_a_context_ends_with_the_users_words():
    turns = [Turn("hi", "hello")]
    said = context_of(turns, "ok", ("anna town oslo",))
    assert [u.text for u in said] == ["hi", "hello", "anna town oslo", "ok"]
    assert [u.time for u in said] == [0, 1, 2, 2]
    assert utterances(turns)[1] == [0]


def test_the_baseline_answers_as_training_does():
    talk = (Turn("hi", "hello"), Turn("i want tea", "tea it is"), Turn("bye", "see you"))
    other = (Turn("hi", "hello"), Turn("i want a coffee", "coffee it is"), Turn("hi", "what"))
    test = (Turn("hi", "hello"), Turn("want tea please", "tea it is"), Turn("zzz", "hello"))
    splits = {"train": (talk, other), "validation": (talk,), "test": (test, (Turn("bye", "x"),))}
    data = DialogueData(splits, ("hello", "x"), "here")
    scores = likest_turn(data).scores
    assert scores["validation"] == {"accuracy": 1.0, "dialogue_accuracy": 1.0}
    assert scores["test"] == {"accuracy": 0.75, "dialogue_accuracy": 0.5}


def _searches(dialogues) -> set[str]:
    return {t.bot for d in dialogues for t in d if t.bot.startswith("api_call")}


def test_bookings_are_the_same_everywhere_and_held_out():
    read = {
        split: [
            d
            for text in booking_world.dialogues(split, 60)
            for d in read_dialogues(text, split, [], format="babi")
        ]
        for split in booking_world.SEEDS
    }
    assert (
        list(booking_world.dialogues("train", 2))[1] == list(booking_world.dialogues("train", 9))[1]
    )
    assert not _searches(read["train"]) & (_searches(read["test"]) | _searches(read["validation"]))
    words = {split: {w for d in ds for t in d for w in t.bot.split()} for split, ds in read.items()}
    names = {hotel.name for hotel in booking_world.hotels()}
    assert len(names) == 648
    assert not words["oov"] & words["train"] & names
    candidates = set(booking_world.candidates())
    assert len(candidates) == 2170
    for dialogues in read.values():
        assert {t.bot for d in dialogues for t in d} <= candidates


def test_bookings_follow_the_knowledge_base():
    """Each call's rows are those that a chat would get, and offers go from the best score down."""
    knowledge = KnowledgeBase.of(list(booking_world.knowledge()))
    score = {hotel.name: hotel.score for hotel in booking_world.hotels()}
    offered = 0
    for text in booking_world.dialogues("test", 80):
        (dialogue,) = read_dialogues(text, "f", [], format="babi")
        best: list[str] = []
        for before, turn in pairwise(dialogue):
            found = knowledge.ask(before.bot)
            if found is not None:
                assert sorted(found) == sorted(turn.rows)
                best = sorted({row.split()[0] for row in found}, key=lambda name: -score[name])
            if turn.bot.startswith("how about"):
                assert turn.bot == f"how about {best.pop(0)} ?"
                offered += 1
    assert offered > 100


def test_builtin_is_prepared_once(tmp_path: Path):
    config = DialogueDataConfig(data_dir=str(tmp_path))
    data = config.load().with_notes()
    assert len(data.splits["oov"]) == 500 and len(data.knowledge) == 648 * 7
    assert not data.notes
    assert config.load().fingerprint == data.fingerprint


class _Records(list):
    def __getitems__(self, places):
        return [self[i] for i in places]


def _catalogue(monkeypatch, features, records, supervised=None):
    builder = SimpleNamespace(
        info=SimpleNamespace(
            features=features,
            splits=dict.fromkeys(records),
            full_name="fake/1.0.0",
            supervised_keys=supervised,
        ),
        as_data_source=lambda split: _Records(records[split]),
    )
    monkeypatch.setattr(dialogue_tfds, "catalogue_builder", lambda name, where: builder)


def test_the_catalogue_gives_pairs_lists_and_texts(monkeypatch):
    text = tfds.features.Text()
    pairs = [{"q": f"hi {i}".encode(), "a": f"ho {i}".encode(), "n": 3} for i in range(20)]
    features = {"q": text, "a": text, "n": tfds.features.Scalar(np.int64)}
    _catalogue(monkeypatch, features, {"train": [*pairs, {"q": b"x", "a": b"", "n": 1}]})
    data = DialogueDataConfig(source="tfds:fake", columns=("q", "a")).load()
    assert (Turn("hi 3", "ho 3"),) in {d for ds in data.splits.values() for d in ds}
    assert "train: skipped 1 records without an answer" in data.notes

    lists = [{"said": [b"hi", f"{i}".encode(), b"", b"bye", b"left"]} for i in range(20)]
    said = {"said": tfds.features.Sequence(text)}
    _catalogue(monkeypatch, said, {"train": lists, "test": lists[:2], "validation": lists[:3]})
    data = DialogueDataConfig(source="tfds:fake").load()
    assert data.splits["test"][1] == (Turn("hi", "1"), Turn(SILENCE, "bye"))

    texts = [{"t": f"Ann: hi\nBob: ho {i}".encode()} for i in range(20)]
    _catalogue(monkeypatch, {"t": text}, {"train": texts})
    data = DialogueDataConfig(source="tfds:fake").load()
    assert len(data.splits["train"]) == 16

    _catalogue(monkeypatch, features, {"train": pairs})
    with pytest.raises(ValueError, match=r"expected one feature.*got \['n'\].*q \(Text\)"):
        DialogueDataConfig(source="tfds:fake", columns=("n",)).load()
    _catalogue(monkeypatch, features, {"test": pairs})
    with pytest.raises(ValueError, match="has no train split"):
        DialogueDataConfig(source="tfds:fake", columns=("q", "a")).load()
