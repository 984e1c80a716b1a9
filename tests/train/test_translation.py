"""The whole program through its command line, on translations that take seconds to learn."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from train.common.pairs.run import DecodingConfig, Writer, Written
from train.common.signals import StopSignals
from train.translation import main

LONG = ("--train.steps", "600", "--train.eval-every", "300")
WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "and": "und"}


def write_pairs(folder: Path, name: str, count: int, seed: int) -> None:
    """Word by word."""
    rng = np.random.default_rng(seed)
    rows = [rng.choice(list(WORDS), rng.integers(1, 5)).tolist() for _ in range(count)]
    (folder / f"{name}.en").write_text("".join(" ".join(row) + "\n" for row in rows))
    other = [" ".join(WORDS[word] for word in row) for row in rows]
    (folder / f"{name}.de").write_text("".join(row + "\n" for row in other))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for seed, (name, count) in enumerate({"train": 400, "dev": 30, "test": 40}.items()):
        write_pairs(folder, name, count, seed)
    return folder


def arguments(files: Path, run_dir: Path, *more: str) -> list[str]:
    prefixes = [str(files / name) for name in ("train", "dev", "test")]
    return [
        *("--run-dir", str(run_dir), "--data", prefixes[0], "--data.languages", "en", "de"),
        *("--data.validation", prefixes[1], "--data.test", prefixes[2]),
        *("--tokens.kind", "word", "--tokens.max-source", "8", "--tokens.max-target", "8"),
        *("--model.features", "32", "--model.heads", "2", "--model.dropout", "0"),
        *("--model.encoder-layers", "1", "--model.decoder-layers", "1", "--model.hidden", "64"),
        *("--train.batch-size", "32", "--train.eval-batch-size", "40", "--train.no-tensorboard"),
        *("--train.no-progress", "--train.epochs", "None", "--decoding.beams", "3"),
        *("--train.optim.learning-rate", "0.005", "--train.ema-decay", "0.9"),
        *("--model.attention.positions", "sinusoidal", "--label-smoothing", "0", *more),
    ]


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def history(run_dir: Path, *kinds: str) -> list[dict]:
    """Rows of metrics.jsonl, without what differs from run to run."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    chosen = [row for row in rows if row["kind"] in (kinds or ("train", "eval"))]
    return [{name: x for name, x in row.items() if name != "seconds"} for row in chosen]


def stop_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Has the next run get a SIGTERM in that step."""
    polls = itertools.count(1)

    def poll(self: StopSignals) -> bool:
        self.received = signal.SIGTERM if next(polls) >= step else None
        return self.received is not None

    patch.setattr(StopSignals, "poll", poll)


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory) -> Path:
    """A run that was stopped after two steps, went on, and has learned its words."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    command = arguments(files, run_dir, *LONG)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(2, patch)
        assert main(command) == 128 + signal.SIGTERM
    assert main(command) == 0
    assert "resuming from the checkpoint of step 2 of 600" in (run_dir / "log.txt").read_text()
    return run_dir


def test_it_learns_beats_the_baseline_and_says_how_it_was_measured(finished: Path) -> None:
    result = read(finished / "result.json")
    assert result["test"]["bleu"] > 90 > result["baseline_test"]["bleu"]
    assert result["validation"]["token_accuracy"] > 0.9
    assert "tok:13a" in result["signatures"]["bleu"] and "nc:6" in result["signatures"]["chrf"]
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert read(finished / "manifest.json")["data_fingerprint"] in page
    assert result["signatures"]["bleu"] in page
    assert page.count("<svg") == 4  # the curves, and where the model looked in three texts
    assert "(end)" in page


def test_predict_translates_in_order(finished: Path, capsys, monkeypatch) -> None:
    texts = ["one and two", "four", "three two one"]
    assert main(["predict", str(finished), *texts, "--decoding.beams", "3"]) == 0
    wanted = ["eins und zwei", "vier", "drei zwei eins"]
    assert capsys.readouterr().out.splitlines() == wanted
    monkeypatch.setattr("sys.stdin", iter(["one and two\n", "\n", "four\n"]))
    assert main(["predict", str(finished), "--json", "--decoding.beams", "3"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["text"] for one in found] == wanted[:2]
    assert all(one["ended"] and not one["source_cut"] and one["score"] < 0 for one in found)


def test_evaluate_measures_what_training_reported(finished: Path, capsys) -> None:
    assert main(["evaluate", str(finished), "--decoding.beams", "3"]) == 0
    printed = capsys.readouterr().out
    assert f"test: bleu {read(finished / 'result.json')['test']['bleu']:.2f}" in printed
    assert "40 texts" in printed and "tok:13a" in printed


def test_the_alignment_finds_the_words(finished: Path) -> None:
    writer = Writer.load(finished, DecodingConfig(beams=3))
    written = writer.write(["one and two three"])[0]
    alignment = next(iter(writer.alignments([written])))
    assert alignment.source == ("one", "and", "two", "three", "(end)")
    assert alignment.output == ("eins", "und", "zwei", "drei", "(end)")
    assert alignment.weights.shape == (5, 5)
    np.testing.assert_allclose(alignment.weights.sum(axis=1), 1, rtol=1e-5)


def test_what_is_too_long_is_cut_and_said(finished: Path) -> None:
    writer = Writer.load(finished, DecodingConfig(beams=1, max_tokens=2))
    long, short, empty = writer.write([" ".join(["one"] * 9), "one", ""])
    assert long.source_cut and not long.ended and len(long.text.split()) == 2
    assert short == Written("one", "eins", short.score, False, True)
    assert not empty.source_cut


def test_a_finished_run_is_neither_trained_again_nor_overwritten(
    finished: Path, files: Path, tmp_path: Path, capsys
) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    write_pairs(tmp_path, "train", 400, seed=9)
    for changes, message in (
        (("--model.features", "16"), "features"),
        (("--label-smoothing", "0.2"), "label_smoothing"),
        (("--tokens.max-target", "9"), "max_target"),
        (("--data", str(tmp_path / "train")), "data"),
    ):
        assert main(arguments(files, finished, *LONG, *changes)) == 2
        assert message in capsys.readouterr().err
    shutil.move(files / "train.en", tmp_path / "kept.en")
    shutil.copy(tmp_path / "train.en", files / "train.en")
    assert main(arguments(files, finished, *LONG)) == 2
    assert "data" in capsys.readouterr().err
    shutil.move(tmp_path / "kept.en", files / "train.en")
    after = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert {p.name for p in after if after[p] != before.get(p)} <= {"log.txt"}
    assert main(arguments(files, finished, *LONG)) == 0
    assert (finished / "metrics.jsonl").read_bytes() == before[finished / "metrics.jsonl"]


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_end(files: Path, tmp_path: Path, monkeypatch) -> None:
    options = ("--train.steps", "4", "--train.eval-every", "2", "--train.log-every", "1")
    whole, stopped = (arguments(files, tmp_path / name, *options) for name in ("whole", "stopped"))
    assert main(whole) == 0
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        assert main(stopped) == 128 + signal.SIGTERM
    assert main(stopped) == 0
    assert history(tmp_path / "whole") == history(tmp_path / "stopped")
    assert read(tmp_path / "whole" / "result.json") == read(tmp_path / "stopped" / "result.json")


@pytest.mark.slow
def test_a_dry_run_leaves_nothing_behind(files: Path, tmp_path: Path, capsys) -> None:
    assert main(arguments(files, tmp_path / "run", "--train.steps", "2", "--train.dry-run")) == 0
    assert "temporaries" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--model.copy",),
        ("--model", "rnn-bahdanau", "--model.cell", "gru"),
        ("--model", "rnn-luong", "--tokens.padding", "coarse"),
        ("--tokens.no-joint", "--model.scan-layers", "--model.attention.positions", "alibi"),
        ("--tokens.kind", "bpe", "--model.attention.positions", "t5", "--tokens.max-source", "32"),
        ("--tokens.kind", "char", "--tokens.max-source", "40", "--tokens.max-target", "40"),
    ],
)
def test_other_choices_learn_too(files: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    more = ("--train.steps", "60", "--train.eval-every", "30", *options)
    assert main(arguments(files, tmp_path / "run", *more)) == 0
    losses = [row["loss"] for row in history(tmp_path / "run", "eval")]
    assert losses[-1] < losses[0] < np.log(60)


@pytest.mark.slow
def test_seeds_get_a_directory_each_and_a_table(files: Path, tmp_path: Path, capsys) -> None:
    options = ("--seeds", "0", "1", "--train.steps", "2")
    assert main(arguments(files, tmp_path / "run", *options)) == 0
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"seed-0", "seed-1"}
    table = capsys.readouterr().out.splitlines()[-6:]
    assert [line.split()[0] for line in table] == ["seed", "0", "1", "mean", "sd", "base"]
