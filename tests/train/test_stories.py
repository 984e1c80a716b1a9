"""Stories in bAbI's format: what is read, what is said about it, and what is refused."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import numpy as np
import pytest

from train.common.builders.story_world import KINDS, PEOPLE, PLACES, split_of, stories
from train.common.stories.batches import StoryBatches, StoryEncoder
from train.common.stories.data import StoryData, natural_order
from train.common.stories.files import read_stories
from train.common.stories.loading import StoryDataConfig
from train.common.stories.scores import StoryScores, errors_table, guess
from train.common.stories.task import make_encoder
from train.common.tokenise import UNKNOWN_ID

STORY = """\
1 Ada went to the attic.
2 Ben took the key.
3 Where is Ada?\tattic\t1
4 Ben went to the cellar.
5 Where is the key?\tcellar\t2 4
1 Ada went to the cellar.
2 Where is Ada?\tcellar\t1
"""


def write(folder: Path, names: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in names.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = [f"qa{n}_x_{split}.txt" for n in (2, 10) for split in ("train", "test")]
    return write(tmp_path / "babi", dict.fromkeys(names, STORY * 5))


def load(path: Path, **options) -> StoryData:
    return StoryDataConfig(source=str(path), **options).load()


def test_a_question_sees_what_was_told_before_it():
    first, second = read_stories("f", STORY.splitlines(), "t", [])
    assert [story.question for story in first] == ["Where is Ada?", "Where is the key?"]
    assert first[1].sentences == (
        "Ada went to the attic.",
        "Ben took the key.",
        "Ben went to the cellar.",
    )
    assert first[1].supporting == (1, 2)  # numbers of lines became places among the sentences
    assert second[0].sentences == ("Ada went to the cellar.",)


def test_folders_archives_and_packed_files_hold_the_same(folder: Path, tmp_path: Path):
    archive = tmp_path / "babi.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname="en")
    packed = tmp_path / "packed"
    packed.mkdir()
    for path in folder.iterdir():
        (packed / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    data = load(folder)
    assert data.tasks == ("qa2_x", "qa10_x")
    assert data.fingerprint == load(archive).fingerprint == load(packed).fingerprint
    assert [load(folder, tasks=("10",)).tasks] == [load(folder, tasks=("qa10_x",)).tasks]


def test_whole_stories_are_held_out(folder: Path):
    data = load(folder, validation_fraction=0.3)
    assert len(data.splits["train"]) + len(data.splits["validation"]) == 2 * 15
    assert len(data.splits["test"]) == 2 * 15
    # Each story asks two questions or one; none is torn apart.
    pairs = [story.question == "Where is the key?" for story in data.splits["validation"]]
    assert sum(pairs) == sum(len(s.sentences) == 2 for s in data.splits["validation"])
    assert "held out of the training stories at random" in data.notes[0]
    again = load(folder, validation_fraction=0.3)
    assert again.fingerprint == data.fingerprint
    assert load(folder, validation_fraction=0.3, split_seed=1).fingerprint != data.fingerprint


def test_what_is_dropped_is_counted(folder: Path):
    (folder / "qa2_x_train.txt").write_text("\n\n" + STORY * 5, encoding="utf-8")
    (folder / "qa3_x_test.txt").write_text(STORY, encoding="utf-8")
    unknown = STORY.replace("cellar\t1", "roof\t1")
    (folder / "qa10_x_test.txt").write_text(unknown, encoding="utf-8")
    data = load(folder, max_sentences=2)
    text = "\n".join(data.notes)
    assert "qa2_x_train.txt: skipped 2 blank lines" in text
    assert "left out task qa3_x, which has no train file" in text
    assert "1 of 18 test questions have an answer that no training question has" in text
    assert "16 of 48 stories have more than 2 sentences; the oldest are cut off" in text
    cut = [s for s in data.splits["test"] if s.question == "Where is the key?"]
    assert cut[0].sentences[0] == "Ben took the key."
    assert cut[0].supporting == (0, 1)
    assert load(folder, max_train=4).summary().count("train 4,") == 1


BAD_LINES = {
    "Ada went home.": "line 1: expected a number from 1 on, a space and a sentence",
    "1 Ada.\n3 Ben.": "line 2: expected the number 2, or 1 for a new story, got 3",
    "2 Ada.": "line 1: expected the number 1, or 1 for a new story, got 2",
    "0 Ada.": "line 1: expected a number from 1 on",
    "1 ": "line 1: expected a number from 1 on",
    "1 Where?\tattic\t": "the question 'Where\\?' comes before any sentence",
    "1 Ada.\n2 Where?\t\t1": "line 2: expected question<TAB>answer<TAB>IDs",
    "1 Ada.\n2 Where?\tattic\t1\tmore": "line 2: expected question<TAB>answer<TAB>IDs",
    "1 Ada.\n2 Where?\tattic\t7": "'7' is not the number of an earlier sentence",
    "1 Ada.\n2 Where?\tattic\tone": "'one' is not the number of an earlier sentence",
    "1 Ada.": "no line holds a question",
    "": "no line holds a question",
}


@pytest.mark.parametrize("text", BAD_LINES)
def test_bad_lines_are_named(folder: Path, text: str):
    (folder / "qa2_x_train.txt").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=BAD_LINES[text]) as error:
        load(folder)
    assert "qa2_x_train.txt" in str(error.value)


def test_bad_files_are_named(folder: Path, tmp_path: Path):
    def refused(message: str, path: Path = folder, kind: type = ValueError, **options) -> None:
        with pytest.raises(kind, match=message):
            load(path, **options)

    refused("no such folder or archive", tmp_path / "nowhere", FileNotFoundError)
    refused("found none", write(tmp_path / "other", {"readme.txt": "hello"}))
    refused("qa7: fits no task; .* has qa2_x, qa10_x", tasks=("7",))
    refused("has no stories there, only in \\.", folder="en")
    (folder / "qa2_x_test.txt").write_bytes("1 Ada.\n2 Wo?\tKüche\t1".encode("latin-1"))
    refused("qa2_x_test.txt, line 2: not utf-8 text .* give its --data.encoding")
    assert load(folder, encoding="latin-1").splits["test"][0].answer == "Küche"
    refused("--data.encoding utf-99", encoding="utf-99")
    (folder / "qa2_x_test.txt").unlink()
    refused("task qa2_x has no test file, only train", tasks=("2",))
    (folder / "qa2_x_test.txt.gz").write_bytes(gzip.compress(STORY.encode())[:-9])
    refused("qa2_x_test.txt.gz: not a whole gzip file")
    (folder / "qa2_x_test.txt").write_text(STORY, encoding="utf-8")
    refused("are both the test split")
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(gzip.compress(b"nothing like an archive" * 99)[:-20])
    refused("expected a folder, or a whole .tar or .tar.gz archive", broken)
    both = tmp_path / "both"
    for name in ("en", "shuffled"):
        write(both / name, {"qa1_train.txt": STORY * 9, "qa1_test.txt": STORY})
    refused("in several folders; give --data.folder, one of en, shuffled", both)
    assert load(both, folder="en/").tasks == ("qa1",)
    one = STORY.replace("cellar", "attic")
    sure = write(tmp_path / "sure", {"qa1_train.txt": one * 9, "qa1_test.txt": one})
    refused("every training question has the answer 'attic'", sure)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "tfds:squad"}, "has no stories; .* the command `spans` for tfds:squad"),
        ({"max_sentences": 0}, "max_sentences must be at least 1, got 0"),
        ({"validation_fraction": 1.5}, "validation_fraction must lie between 0 and 1, got 1.5"),
        ({"max_train": 0}, "max_train must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        StoryDataConfig(**options)


def test_batches_hold_the_words_of_each_sentence(folder: Path):
    data = load(folder)
    encoder = make_encoder(data, max_words=4)
    assert encoder.words == 4
    batches = StoryBatches(data, encoder)
    batch = next(batches.train_batches(batch_size=8, seed=0, start_step=3))
    assert batch["story"].shape == (8, 4, 4)
    assert batch["question"].shape == (8, 4)
    whole = next(iter(batches.eval_batches("test", batch_size=30)))
    lengths = (whole["story"] != 0).any(-1).sum(-1)
    np.testing.assert_array_equal(lengths, [len(s) for s in sorted_sentences(data)])
    assert set(whole["task"][whole["weight"] > 0].tolist()) == {0, 1}
    part = next(iter(batches.eval_batches("test", batch_size=30, rows=np.array([3, 5]))))
    for name, x in whole.items():
        np.testing.assert_array_equal(part[name], x[[3, 5]])
    with pytest.raises(ValueError, match="no split 'dev'"):
        next(iter(batches.eval_batches("dev", batch_size=2)))


def sorted_sentences(data: StoryData) -> list[tuple[str, ...]]:
    return sorted((story.sentences for story in data.splits["test"]), key=len)


def test_unknown_words_and_marks(folder: Path):
    data = load(folder)
    encoder = make_encoder(data, max_words=32)
    asked = data.splits["test"][0]._replace(
        question="?!", answer="nowhere", sentences=("Zoe ran.",)
    )
    batch = encoder.pad(encoder.encode([asked]), longest=1)
    assert batch["question"][0].tolist() == [UNKNOWN_ID] + [0] * (encoder.words - 1)
    assert batch["story"][0, 0, :2].tolist() == [UNKNOWN_ID, UNKNOWN_ID]
    assert batch["answer"].tolist() == [-1]
    assert StoryEncoder.longest(encoder.tokeniser, [asked]) == 2


def test_guessing_takes_the_better_way(folder: Path, tmp_path: Path):
    baseline = guess(load(folder, validation_fraction=0.4))
    assert baseline.name == "answer mentioned last in the story"
    assert baseline.test.mean_error == 0
    assert "qa10_x" in errors_table(baseline.test, baseline)
    text = STORY.replace("attic\t1", "yes\t1").replace("cellar\t", "no\t")
    asked = write(tmp_path / "asked", {"qa6_train.txt": text * 9, "qa6_test.txt": text})
    baseline = guess(load(asked))
    assert baseline.name == "most frequent answer of the task"
    assert baseline.test.mean_error == pytest.approx(1 / 3)
    assert baseline.test.failed == 1


def test_scores_weigh_tasks_alike(folder: Path):
    found = load(folder).splits["test"]
    told = [story.answer if story.task == "qa2_x" else "wrong" for story in found]
    scores = StoryScores.of(found[:-5], told[:-5])
    assert dict(scores.errors) == {"qa2_x": 0, "qa10_x": 1}
    assert scores.mean_error == 0.5
    assert scores.failed == 1
    assert scores.accuracy == pytest.approx(15 / 25)
    # One in twenty is no failure yet.
    one = StoryScores.of(found[:1] * 20, [found[0].answer] * 19 + ["wrong"])
    assert (one.mean_error, one.failed) == (0.05, 0)
    assert sorted(["qa10", "qa2", "qa1"], key=natural_order) == ["qa1", "qa2", "qa10"]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_made_up_stories_follow_from_their_facts(split):
    found = list(stories(split, 80))
    assert found == list(stories(split, 80))
    for told in found:
        if told.kind == "unanswerable":
            subject = told.question.removesuffix("?").split()[-1]
            assert (told.answer, told.supporting) == ("", ())
            assert not any(subject in sentence for sentence in told.sentences)
            continue
        links = [told.sentences[i] for i in told.supporting]
        assert len(set(told.supporting)) == 1 + KINDS.index(told.kind)
        subject = told.question.removesuffix("?").split()[-1]
        for link in links[:-1]:
            words = link.rstrip(".").split()
            assert subject in words
            subject = words[-1] if words[1] == "put" and words[2] != "down" else words[0]
        person, place = links[-1].split()[0], links[-1].rstrip(".").split()[-1]
        assert (subject, told.answer) == (person, place)
        assert split_of(person, place) == split
        if told.kind == "one_fact":
            moves = [
                s for s in told.sentences if s.split()[0] == person and s[:-1].endswith(PLACES)
            ]
            assert moves[-1] == links[0]


def test_training_never_shows_held_out_visits():
    shown = {
        (person, place)
        for told in stories("train", 200)
        for sentence in told.sentences
        for person in PEOPLE
        for place in PLACES
        if sentence.startswith(person) and sentence.endswith(f"{place}.")
    }
    assert shown
    assert {split_of(*pair) for pair in shown} == {"train"}
