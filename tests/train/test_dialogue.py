"""The whole program through its command line, on tasks that take seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.train.toy_dialogues import COLOURS, UNSEEN, data_options, write_dialogues
from train.dialogue import main, prepare

QUIET = ("--train.no-progress", "--train.no-tensorboard")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    return write_dialogues(tmp_path_factory.mktemp("dialogues"))


def choose_arguments(files: dict[str, Path], run_dir: Path, *more: str) -> list[str]:
    return [
        *("--run-dir", str(run_dir), *data_options(files), *QUIET),
        *("--model.features", "16", "--model.hops", "2", "--model.pointers", "2"),
        *("--model.hidden-words", "0.4", "--train.epochs", "12", "--train.batch-size", "16"),
        *("--train.eval-batch-size", "64", "--train.optim.learning-rate", "0.02", *more),
    ]


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("choose") / "run"
    assert main(choose_arguments(files, run_dir)) == 0
    return run_dir


def test_it_learns_to_answer_with_names_it_never_saw(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text(encoding="utf-8"))
    assert result["test"]["accuracy"] > 0.95
    assert result["oov"]["accuracy"] > 0.9
    assert 0.2 < result["baseline_test"]["accuracy"] < 0.95
    page = (finished / "report.html").read_text(encoding="utf-8")
    manifest = json.loads((finished / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["data_fingerprint"] in page
    assert "hop 2" in page and "point 2" in page and "_shirt_shop" in page


def test_predict_answers_turn_by_turn_and_says_where_it_looked(finished: Path, capsys) -> None:
    assert main(["predict", str(finished), "hi", "i like teal", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["answer"] for one in found] == ["what do you like", "api_call teal"]
    last = found[-1]
    said = [(speaker, text) for text, speaker, _ in last["context"]]
    assert said == [("user", "hi"), ("bot", "what do you like"), ("user", "i like teal")]
    assert len(last["weights"]) == 4
    np.testing.assert_allclose(np.sum(last["weights"], axis=1), 1, rtol=1e-5)
    assert last["probability"] > last["others"][0][1]


def test_predict_reads_lines(finished: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", iter(["hello there\n", "\n", "pink please\n"]))
    assert main(["predict", str(finished)]) == 0
    out = capsys.readouterr().out
    assert "what do you like (" in out and "api_call pink (" in out and "user: pink please" in out


def test_evaluate_measures_what_training_reported(finished: Path, capsys) -> None:
    result = json.loads((finished / "result.json").read_text(encoding="utf-8"))
    assert main(["evaluate", str(finished), "--split", "oov"]) == 0
    assert f"{100 * result['oov']['accuracy']:.2f}%" in capsys.readouterr().out


def test_a_chat_asks_the_knowledge_base_and_keeps_the_dialogue(
    finished: Path, capsys, monkeypatch
) -> None:
    typed = ["hi", "it should be ochre", "yes", "/reset", "/jump", "hi", "/quit", "hi"]
    monkeypatch.setattr("sys.stdin", _Lines(f"{line}\n" for line in typed))
    assert main(["chat", str(finished)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "what do you like",
        "api_call ochre",
        "[2 rows of the knowledge base fit]",
        "how about ochre_shirt",
        "it is at ochre_shirt_shop",
        "[a new dialogue]",
        "[/jump is no command: /reset begins anew, /quit ends; an empty line says nothing]",
        "what do you like",
    ]


class _Lines(list):
    """Standard input that is no terminal."""

    def isatty(self) -> bool:
        return False


def test_a_person_is_asked_for_each_line(finished: Path, capsys, monkeypatch) -> None:
    lines = iter(["hi"])
    prompts = []

    def typed(prompt: str) -> str:
        prompts.append(prompt)
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", typed)
    assert main(["chat", str(finished)]) == 0
    assert prompts == ["> ", "> "]
    assert capsys.readouterr().out.splitlines()[1:] == ["what do you like"]


def test_a_finished_run_is_not_trained_again(finished: Path, files, capsys) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    assert main(choose_arguments(files, finished)) == 0
    assert (finished / "metrics.jsonl").read_bytes() == before
    assert main(choose_arguments(files, finished, "--model.ages", "5")) == 2
    assert "model.ages" in capsys.readouterr().err


def test_a_checkpoint_of_another_config_is_refused(finished: Path, tmp_path: Path, capsys) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    config = json.loads((copy / "config.json").read_text())
    config["task"]["model"]["features"] = 8
    (copy / "config.json").write_text(json.dumps(config))
    assert main(["predict", str(copy), "hi"]) == 4
    error = capsys.readouterr().err
    assert "was saved as float32[3, 32, 16]" in error and "Traceback" not in error


@pytest.mark.slow
def test_a_dry_run_leaves_nothing_behind(files, tmp_path: Path, capsys) -> None:
    arguments = choose_arguments(files, tmp_path / "run", "--train.dry-run", "--max-history", "3")
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "temporaries" in out
    assert "have more than 3 utterances and rows before them; the oldest are not read" in out
    assert not (tmp_path / "run").exists()


def test_the_planner_gets_either_task(files, tmp_path: Path) -> None:
    task, config = prepare(choose_arguments(files, tmp_path))
    assert task.data.train_size == 100 * 4 and config.epochs == 12
    task, config = prepare(["write", *data_options(files), "--history", "2"])
    batch = next(task.data.train_batches(batch_size=2, seed=0, start_step=0))
    assert set(batch) >= {"source", "target_in"} and config.select_metric == "loss"


@pytest.mark.slow
def test_seeds_get_a_directory_each_and_a_table(files, tmp_path: Path, capsys) -> None:
    options = ("--seeds", "0", "1", "--train.epochs", "1")
    assert main(choose_arguments(files, tmp_path / "run", *options)) == 0
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"seed-0", "seed-1"}
    table = capsys.readouterr().out.splitlines()[-6:]
    assert [line.split()[0] for line in table] == ["seed", "0", "1", "mean", "sd", "base"]


def transcript(path: Path) -> Path:
    rng = np.random.default_rng(0)
    talks = []
    for _ in range(200):
        greeting, colour = rng.choice(["hi", "hey", "hello"]), rng.choice(COLOURS[:6])
        wish = rng.choice(["i like {}", "{} please"]).format(colour)
        talks.append(f"Ann: {greeting}\nBob: welcome\nAnn: {wish}\nBob: {colour} is nice")
    path.write_text("\n\n".join(talks), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("write")
    arguments = [
        *("write", "--data", str(transcript(folder / "talks.txt")), *QUIET),
        *("--run-dir", str(folder / "run"), "--tokens.kind", "word"),
        *("--tokens.max-source", "24", "--tokens.max-target", "8", "--model.features", "16"),
        *("--model.heads", "2", "--model.encoder-layers", "1", "--model.decoder-layers", "1"),
        *("--train.epochs", "20", "--train.batch-size", "16", "--train.eval-batch-size", "16"),
        *("--train.optim.learning-rate", "0.01", "--decoding.beams", "2", "--model.dropout", "0"),
    ]
    assert main(arguments) == 0
    return folder / "run"


@pytest.mark.slow
def test_open_chat_is_written_token_by_token(written: Path, capsys, monkeypatch) -> None:
    result = json.loads((written / "result.json").read_text(encoding="utf-8"))
    assert result["test"]["exact"] > 90
    assert (written / "report.html").is_file()
    monkeypatch.setattr("sys.stdin", _Lines(["hi", "i like blue", "/reset", "hi"]))
    assert main(["chat", str(written)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        *("welcome", "blue is nice", "[a new dialogue]", "welcome")
    ]
    monkeypatch.setattr("sys.stdin", _Lines(["hi", "i like blue"]))
    assert main(["chat", str(written), "--temperature", "0.01", "--seed", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["welcome", "blue is nice"]


@pytest.mark.slow
def test_written_answers_are_predicted_and_measured(written: Path, capsys) -> None:
    assert main(["predict", str(written), "hi", "i like green"]) == 0
    assert capsys.readouterr().out.splitlines() == ["welcome", "green is nice"]
    result = json.loads((written / "result.json").read_text(encoding="utf-8"))
    assert main(["evaluate", str(written)]) == 0
    assert f"exact {result['test']['exact']:.2f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--data", "tfds:no_such_data"], "no data set 'no_such_data'"),
        (["--data", "nowhere", "--data.task", "2"], "with --data.task expected a folder"),
        (["predict", "nowhere", "a text"], "nowhere is no run directory"),
        (["evaluate", "nowhere"], "nowhere is no run directory"),
        (["chat", "nowhere"], "nowhere is no run directory"),
    ],
)
def test_wrong_use_is_one_message_and_status_2(options, message, capsys, tmp_path) -> None:
    where = ["--run-dir", str(tmp_path / "run")] if options[0].startswith("--") else []
    assert main([*options, *where]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--data.test", "t.txt"], "goes with a training file as --data"),
        (["--data", "folder", "--data.task", "7"], "must be 1 to 5"),
        (["--data.columns", "a"], "names one or two features of a tfds:NAME"),
        (["--data.bot", "Ann"], "goes with transcripts only"),
        (["--data.validation-fraction", "0.6", "--data.test-fraction", "0.5"], "nothing to train"),
        (["--data.max-train", "0"], "max_train must be at least 1"),
        (["--model.hops", "0"], "hops must be at least 1, got 0"),
        (["--model.heads", "7"], "must be a multiple of heads 7"),
        (["--model.pointers", "-1"], "pointers must not be negative"),
        (["--model.hidden-words", "1"], "hidden_words must lie in"),
        (["--words.max-words", "0"], "max_words must be at least 1"),
        (["--max-history", "0"], "max_history must be at least 1"),
        (["write", "--history", "0"], "history must be at least 1"),
        (["write", "--label-smoothing", "1"], "label_smoothing must lie in"),
    ],
)
def test_options_that_mean_nothing_are_refused(option, message, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(option)
    assert caught.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_the_unseen_are_unseen(files) -> None:
    train = files["train"].read_text(encoding="utf-8")
    assert not any(colour in train for colour in UNSEEN)
