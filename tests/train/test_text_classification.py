"""The whole program through its command line, on a task that takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from train.text_classification import main

COLOURS = ["red", "green", "blue", "pink"]
ANIMALS = ["cat", "dog", "cow", "hen"]
FILLER = ["the", "a", "of", "is", "on", "there"]


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    """One telling word among fillers decides the label; the labels are unbalanced."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        label, words = ("colour", COLOURS) if rng.random() < 0.3 else ("animal", ANIMALS)
        text = [*rng.choice(FILLER, rng.integers(2, 9)), rng.choice(words)]
        found.append((" ".join(rng.permutation(text)), label))
    return found


def write_files(folder: Path) -> dict[str, Path]:
    paths = {}
    for seed, (name, count) in enumerate({"train": 300, "dev": 40, "test": 60}.items()):
        lines = [json.dumps({"text": t, "label": y}) for t, y in sentences(count, seed)]
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("\n".join(lines), encoding="utf-8")
    return paths


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    return write_files(tmp_path_factory.mktemp("files"))


def arguments(files: dict[str, Path], run_dir: Path, *more: str) -> list[str]:
    return [
        *("--run-dir", str(run_dir), "--data", str(files["train"])),
        *("--data.validation", str(files["dev"]), "--data.test", str(files["test"])),
        *("--model.features", "16", "--model.heads", "2", "--model.layers", "1"),
        *("--model.embedding-dropout", "0.1", "--subwords.buckets", "100"),
        *("--train.batch-size", "16", "--train.eval-batch-size", "64", "--train.epochs", "5"),
        *("--train.optim.learning-rate", "0.01", "--train.no-progress", "--train.no-tensorboard"),
        *more,
    ]


@pytest.fixture(scope="module", params=["bilstm_attention", "transformer"])
def finished(request, files, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp(request.param) / "run"
    options = ("--model", request.param, "--class-weights", "balanced")
    assert main(arguments(files, run_dir, *options)) == 0
    return run_dir


@pytest.mark.first(1)
def test_it_learns_and_stands_beside_the_baseline(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text(encoding="utf-8"))
    assert result["test"]["accuracy"] > 0.95
    assert result["baseline_test"]["accuracy"] > 0.9
    assert np.sum(result["confusion"]) == 60
    manifest = json.loads((finished / "manifest.json").read_text(encoding="utf-8"))
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert manifest["data_fingerprint"] in page


def test_predict_shows_each_words_weight(finished: Path, capsys) -> None:
    texts = ["There is a CAT of the a", "of Pink the", "zzz qqq"]
    assert main(["predict", str(finished), *texts, "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [p["text"] for p in found] == texts
    assert [p["label"] for p in found[:2]] == ["animal", "colour"]
    for p in found:
        weights = [word["weight"] for word in p["words"]]
        np.testing.assert_allclose(sum(weights), 1, rtol=1e-5)
        assert [w["text"] for w in p["words"]] == p["text"].split()
        np.testing.assert_allclose(sum(p["probabilities"].values()), 1, rtol=1e-5)


def test_predict_reads_lines_and_prints_a_table(finished: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", iter(["the cat is\n", "\n", "a blue of\n"]))
    assert main(["predict", str(finished)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "the cat is" and lines[3] == "a blue of"
    assert lines[1].split()[:2] == ["label:", "animal"]
    assert lines[2].count("[") == 3


def test_evaluate_measures_what_training_reported(finished: Path, capsys) -> None:
    assert main(["evaluate", str(finished)]) == 0
    result = json.loads((finished / "result.json").read_text(encoding="utf-8"))
    assert f"accuracy {result['test']['accuracy']:.4f}" in capsys.readouterr().out
    assert main(["evaluate", str(finished), "--split", "train"]) == 0
    assert "300 texts" in capsys.readouterr().out


@pytest.mark.first(1)
def test_explain_writes_which_words_decide_and_how_true_that_is(finished: Path, capsys) -> None:
    kind = json.loads((finished / "config.json").read_text())["task"]["model"]["name"]
    assert main(["explain", str(finished), "--examples", "5", "--measured", "60"]) == 0
    printed = capsys.readouterr().out
    written = json.loads((finished / "focus_examples.json").read_text(encoding="utf-8"))
    assert written["version"] == 1 and len(written["examples"]) == 5
    faithful = written["faithful"]
    methods = {"attention pooling", "gradient x attention pooling", "leave one out"}
    methods |= {"integrated gradients", "random"}
    if kind == "transformer":
        methods |= {"self-attention received", "gradient x self-attention"}
    assert faithful.keys() == methods and all(name in printed for name in methods)
    assert float(printed.partition("but for ")[2].partition("%")[0]) < 10
    for name in ("leave one out", "integrated gradients"):  # one word decides, and they find it
        low, high = faithful[name]["interval"]
        assert 0.05 < low < faithful[name]["margin"] < high
        assert faithful[name]["margin"] > faithful["random"]["margin"] + 0.05
        assert faithful[name]["insertion"] > faithful[name]["insertion_random"] + 0.05
    assert all(numbers["examples"] == 60 for numbers in faithful.values())
    for example in written["examples"]:
        assert example["prediction"] == example["label"] and example["kind"] == "tokens"
        (word,) = set(example["tokens"]) & {*COLOURS, *ANIMALS}
        maps = {found["name"]: found["weights"] for found in example["maps"]}
        assert maps.keys() == methods - {"random"}
        assert all(len(weights) == len(example["tokens"]) for weights in maps.values())
        assert example["tokens"][np.argmax(maps["leave one out"])] == word
        assert example["faithful"].keys() == methods
        for curves in example["faithful"].values():
            full, nothing = curves["deletion"][0][1], curves["deletion"][-1][1]
            ends = [curves["insertion"][-1][1], curves["insertion"][0][1]]
            np.testing.assert_allclose(ends, [full, nothing], rtol=1e-5)
            assert full > 0.5


def test_a_finished_run_is_not_trained_again(finished: Path, files, capsys) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    name = json.loads((finished / "config.json").read_text())["task"]["model"]["name"]
    options = ("--model", name, "--class-weights", "balanced")
    assert main(arguments(files, finished, *options)) == 0
    assert (finished / "metrics.jsonl").read_bytes() == before
    assert main(arguments(files, finished, "--model", name)) == 2
    assert "class_weights" in capsys.readouterr().err


@pytest.mark.slow
def test_seeds_get_a_directory_each_and_a_table(files, tmp_path: Path, capsys) -> None:
    options = ("--seeds", "0", "1", "--train.epochs", "1", "--tokens.kind", "bpe")
    assert main(arguments(files, tmp_path / "run", *options)) == 0
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"seed-0", "seed-1"}
    table = capsys.readouterr().out.splitlines()[-6:]
    assert [line.split()[0] for line in table] == ["seed", "0", "1", "mean", "sd", "base"]


@pytest.mark.slow
def test_a_dry_run_leaves_nothing_behind(files, tmp_path: Path, capsys) -> None:
    assert main(arguments(files, tmp_path / "run", "--train.dry-run")) == 0
    assert "temporaries" in capsys.readouterr().out
    options = ("--train.dry-run", "--tokens.max-tokens", "5")
    assert main(arguments(files, tmp_path / "run", *options)) == 0
    assert "training texts have 5 tokens or more" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--data", "tfds:no_such_data"], "no data set 'no_such_data'"),
        (["predict", "nowhere", "a text"], "nowhere is no run directory"),
        (["evaluate", "nowhere"], "nowhere is no run directory"),
        (["explain", "nowhere"], "nowhere is no run directory"),
    ],
)
def test_wrong_use_is_one_message_and_status_2(options, message, capsys, tmp_path) -> None:
    command = options[0] in ("predict", "evaluate", "explain")
    where = [] if command else ["--run-dir", str(tmp_path / "run")]
    assert main([*options, *where]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--model", "cnn"], "cnn"),
        (["--no-such-option"], "no-such-option"),
        (["--data.test", "t.csv"], "go with a file"),
        (["--model", "transformer", "--model.heads", "5"], "multiple of heads 5"),
        (["explain", "run", "--measured", "4"], "in [0, 4], got 8"),
    ],
)
def test_options_that_mean_nothing_are_refused(option, message, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(option)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_missing_network_is_reported_within_five_seconds(tmp_path: Path) -> None:
    def timed(*options: str) -> tuple[subprocess.CompletedProcess[str], float]:
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "train.text_classification", *options],
            env={"PATH": "", "HOME": str(tmp_path), "no_proxy": "*"},
            capture_output=True,
            text=True,
            check=False,
        )
        return done, time.monotonic() - started

    _, to_start = timed("--help")
    done, seconds = timed(
        *("--data", "tfds:imdb_reviews", "--data.data-dir", str(tmp_path)),
        *("--run-dir", str(tmp_path / "run")),
    )
    if done.returncode == 0:
        pytest.skip("this machine has a network")
    assert seconds - to_start < 5
    assert done.returncode == 2
    for part in ("to fetch:", "80.2 MiB", "goes to:", "download_and_prepare"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr
