"""The whole program through its command line, on tasks that take seconds."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from train.question_answering import main, prepare

PEOPLE, PLACES = ("Ada", "Ben", "Cleo"), ("attic", "cellar", "garden")
QUIET = ("--train.no-progress", "--train.no-tensorboard")


def a_walk(rng: np.random.Generator) -> tuple[list[str], str, str, int]:
    who = rng.permutation(PEOPLE)
    where = rng.choice(PLACES, len(who))
    asked = int(rng.integers(len(who)))
    told = [f"{p} is in the {q}." for p, q in zip(who, where, strict=True)]
    return told, f"Where is {who[asked]}?", str(where[asked]), asked


def write_stories(folder: Path, name: str, count: int, seed: int) -> None:
    rng, lines = np.random.default_rng(seed), []
    for _ in range(count):
        told, question, answer, fact = a_walk(rng)
        lines += [f"{i} {sentence}" for i, sentence in enumerate(told, 1)]
        lines.append(f"{len(told) + 1} {question}\t{answer}\t{fact + 1}")
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_texts(path: Path, count: int, seed: int) -> None:
    rng, data = np.random.default_rng(seed), []
    for number in range(count):
        told, question, answer, fact = a_walk(rng)
        context, answers = " ".join(told), []
        if number % 4:
            start = sum(len(sentence) + 1 for sentence in told[:fact])
            answers = [{"text": answer, "answer_start": context.index(answer, start)}]
        else:
            question = "Where is Zed?"
        qas = [{"id": f"{path.stem}{number}", "question": question, "answers": answers}]
        data.append({"title": str(number), "paragraphs": [{"context": context, "qas": qas}]})
    path.write_text(json.dumps({"data": data}), encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for task in ("qa1", "qa2"):
        write_stories(folder / "babi", f"{task}_train.txt", 150, 0)
        write_stories(folder / "babi", f"{task}_test.txt", 40, 1)
    write_texts(folder / "train.json", 240, 0)
    write_texts(folder / "dev.json", 40, 1)
    return folder


def stories(data: Path, run_dir: Path, *more: str) -> list[str]:
    return [
        *("stories", "--run-dir", str(run_dir), "--data", str(data / "babi")),
        *("--model.features", "16", "--model.heads", "2", "--model.steps", "2"),
        *("--model.hidden", "32", "--train.batch-size", "30", "--train.epochs", "12"),
        *("--train.optim.learning-rate", "0.01", "--train.eval-every", "60", *QUIET, *more),
    ]


def spans(data: Path, run_dir: Path, *more: str) -> list[str]:
    return [
        *("spans", "--run-dir", str(run_dir), "--data", str(data / "train.json")),
        *("--data.test", str(data / "dev.json"), "--data.validation-fraction", "0.15"),
        *("--model.features", "32", "--model.heads", "2", "--model.layers", "2"),
        *("--model.dropout", "0", "--train.batch-size", "20", "--train.epochs", "40"),
        *("--train.optim.learning-rate", "0.005", "--train.eval-every", "200", *QUIET, *more),
    ]


@pytest.fixture(scope="module")
def stories_run(data, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("stories") / "run"
    assert main(stories(data, run_dir)) == 0
    return run_dir


@pytest.fixture(scope="module")
def spans_run(data, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("spans") / "run"
    assert main(spans(data, run_dir)) == 0
    return run_dir


def result(run_dir: Path) -> dict:
    return json.loads((run_dir / "result.json").read_text(encoding="utf-8"))


def test_stories_are_learnt_and_stand_beside_the_baseline(stories_run: Path):
    found = result(stories_run)
    assert found["test"]["mean_error"] < 0.15 < found["baseline_test"]["mean_error"]
    assert found["most_looked_at_is_supporting"] > 0.5
    assert set(found["test"]["errors"]) == {"qa1", "qa2"}
    manifest = json.loads((stories_run / "manifest.json").read_text(encoding="utf-8"))
    page = (stories_run / "report.html").read_text(encoding="utf-8")
    assert manifest["data_fingerprint"] in page
    assert "Where is Ada?" in page
    assert page.count('class="example') >= 4


def test_spans_are_learnt_and_stand_beside_the_baseline(spans_run: Path):
    found = result(spans_run)
    assert found["rules"] == "v2.0"
    assert found["test"]["f1"] > found["baseline_test"]["f1"] + 20
    assert found["test"]["NoAns_exact"] > 50
    predictions = json.loads((spans_run / "predictions.json").read_text(encoding="utf-8"))
    assert len(predictions) == 40
    page = (spans_run / "report.html").read_text(encoding="utf-8")
    assert "no answer" in page
    assert page.count('class="example') >= 4


def test_predict_shows_where_a_story_was_looked_at(stories_run: Path, capsys, monkeypatch):
    context = "Ada is in the attic. Ben is in the cellar.\nCleo is in the garden."
    asked = ("Where is Ben?", "Where is Cleo?")
    assert main(["predict", str(stories_run), context, *asked, "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["question"] for one in found] == list(asked)
    assert all(one["answer"] in PLACES for one in found)
    assert np.shape(found[0]["weights"]) == (2, 3)
    assert main(["predict", str(stories_run), context, asked[0]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("Ada is in the attic.")
    assert lines[3].startswith(f"Where is Ben? {found[0]['answer']}")


def test_predict_gives_spans_to_the_character(spans_run: Path, tmp_path: Path, capsys):
    context = "Ada  is in\u00a0the Attic. Ben is in the cellar."
    (tmp_path / "text.txt").write_text(context, encoding="utf-8")
    asked = ["Where is Ada?", "Where is Ben?"]
    assert main(["predict", str(spans_run), f"@{tmp_path / 'text.txt'}", *asked, "--json"]) == 0
    for line in capsys.readouterr().out.splitlines():
        one = json.loads(line)
        assert one["text"] == context[one["start"] : one["start"] + len(one["text"])]
        assert 0 <= one["no_answer"] <= 1
        assert len(one["words"]) == 12
    assert main(["predict", str(spans_run), context, asked[0]]) == 0
    assert "no answer" in capsys.readouterr().out


def test_evaluate_repeats_the_result(stories_run: Path, spans_run: Path, tmp_path: Path, capsys):
    assert main(["evaluate", str(stories_run)]) == 0
    error = 100 * result(stories_run)["test"]["mean_error"]
    assert f"mean {error:6.2f}%" in capsys.readouterr().out
    answers = tmp_path / "answers.json"
    assert main(["evaluate", str(spans_run), "--predictions", str(answers)]) == 0
    assert f"F1 {result(spans_run)['test']['f1']:6.2f}, 40 questions" in capsys.readouterr().out
    assert answers.read_text() == (spans_run / "predictions.json").read_text()
    assert main(["evaluate", str(spans_run), "--predictions", str(answers)]) == 2
    assert "a new file" in capsys.readouterr().err


def test_a_finished_run_is_not_done_again_and_another_config_is_refused(
    stories_run: Path, data: Path, capsys
):
    before = {path: path.stat().st_mtime_ns for path in (stories_run / "checkpoints").iterdir()}
    assert main(stories(data, stories_run)) == 0
    assert main(stories(data, stories_run, "--model.steps", "3")) == 2
    assert "model.steps" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in (stories_run / "checkpoints").iterdir()}


@pytest.mark.slow
def test_each_task_alone_and_several_seeds(data: Path, tmp_path: Path, capsys):
    few = ("--train.epochs", "1", "--single", "--seeds", "1", "2", "--model", "memory")
    assert main(stories(data, tmp_path / "run", *few, "--data.tasks", "2")) == 0
    for seed in (1, 2):
        assert set(result(tmp_path / "run" / f"seed-{seed}" / "qa2")["test"]["errors"]) == {"qa2"}
    text = capsys.readouterr().out
    assert "mean error   failed" in text
    assert "  sd " in text
    config = json.loads((tmp_path / "run" / "seed-1" / "qa2" / "config.json").read_text())
    assert config["task"]["data"]["tasks"] == ["qa2"], "evaluate reads this task alone"


def test_bad_calls_are_answered(stories_run: Path, spans_run: Path, tmp_path: Path, capsys):
    def refused(arguments: list[str], message: str, status: int = 2) -> None:
        try:
            found = main(arguments)
        except SystemExit as error:  # what the command line itself refuses
            found = error.code
        assert found == status
        assert message in " ".join(capsys.readouterr().err.split())

    refused(["predict", str(tmp_path), "A text.", "Why?"], "is no run directory")
    refused(["predict", str(stories_run), "  ", "Why?"], "the context is empty")
    refused(["predict", str(stories_run), "A text.", " "], "expected at least one question")
    refused(["predict", str(stories_run), "@nowhere.txt", "Why?"], "no such file")
    refused(["evaluate", str(tmp_path / "nowhere")], "is no run directory")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"task": {"model": {}}}')
    refused(["evaluate", str(other)], "is a run of another program")
    refused(["stories", "--run-dir", str(other), "--data", "tfds:squad"], "the command `spans`")
    refused(["stories", "--max-words", "0"], "max_words must be at least 1")
    refused(["spans", "--max-answer", "0"], "max_answer must be at least 1")
    refused(["spans", "--data", str(tmp_path / "x.json")], "no such file")
    for run_dir, name in ((stories_run, "stories.json"), (spans_run, "tokeniser.json")):
        broken = tmp_path / run_dir.parent.name
        shutil.copytree(run_dir, broken)
        (broken / name).unlink()
        refused(["predict", str(broken), "A text.", "Why?"], f"has no {name}")
    # The numbers are there, the config beside them is that of a wider model.
    config = json.loads((stories_run / "config.json").read_text())
    config["task"]["model"]["features"] = 32
    wider = tmp_path / "wider"
    shutil.copytree(stories_run, wider)
    (wider / "config.json").write_text(json.dumps(config))
    refused(["predict", str(wider), "A text.", "Why?"], "is broken", 4)


def test_plan_can_prepare_both_forms(data: Path, tmp_path: Path):
    for arguments in (stories(data, tmp_path), stories(data, tmp_path)[1:], spans(data, tmp_path)):
        task, config = prepare(arguments)
        assert config.batch_size in (20, 30)
        assert task.data.train_size > 100


@pytest.mark.slow
def test_training_runs_on_squad(tmp_path: Path, shared_data):
    folder = shared_data("question_answering/squad_v1.1")
    with gzip.open(folder / "dev-v1.1.from_html.json.gz") as file:
        dev = json.load(file)
    some = {"data": dev["data"][:2]}
    (tmp_path / "dev.json").write_text(json.dumps(some), encoding="utf-8")
    asked = sum(len(p["qas"]) for article in some["data"] for p in article["paragraphs"])
    run_dir = tmp_path / "run"
    arguments = [
        *("spans", "--run-dir", str(run_dir), "--data.max-train", "2000"),
        *("--data", str(folder / "train-v1.1.from_html.json.gz"), "--data.test"),
        *(str(tmp_path / "dev.json"), "--data.validation-fraction", "0.002", *QUIET),
        *("--model.features", "32", "--model.layers", "1", "--model.heads", "2"),
        *("--train.epochs", "None", "--train.steps", "20", "--train.batch-size", "16"),
    ]
    assert main(arguments) == 0
    found = result(run_dir)
    assert (found["rules"], found["test"]["total"]) == ("v1.1", asked)
    assert 0 < found["test"]["exact"] <= found["test"]["f1"]
