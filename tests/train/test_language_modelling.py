"""The whole program through its command line, on texts that take seconds."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from train.common.lm.outcome import excerpts
from train.common.lm.run import Language
from train.language_modelling import main, prepare

VERBS = {"cat": "sleeps", "dog": "barks", "hen": "clucks", "cow": "moos"}


def documents(count: int, seed: int) -> list[str]:
    """Each document is about one animal, so that what was read says what follows."""
    rng = np.random.default_rng(seed)
    animals = rng.choice(list(VERBS), count)
    return [f"The {a} {VERBS[a]}. " * int(rng.integers(1, 4)) + f"Good {a}!" for a in animals]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for seed, (name, count) in enumerate({"train": 80, "dev": 10, "test": 12}.items()):
        rows = [json.dumps({"text": text}) for text in documents(count, seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


def arguments(files: Path, run_dir: Path, *more: str) -> list[str]:
    return [
        *("--run-dir", str(run_dir), "--data", str(files / "train.jsonl")),
        *("--data.validation", str(files / "dev.jsonl"), "--data.test", str(files / "test.jsonl")),
        *("--tokens.kind", "character", "--length", "32"),
        *("--model.features", "16", "--model.layers", "1", "--model.heads", "2"),
        *("--model.dropout", "0", "--train.batch-size", "8", "--train.eval-batch-size", "16"),
        *("--train.epochs", "4", "--train.eval-every", "20", "--train.optim.learning-rate", "0.02"),
        *("--train.no-progress", "--train.no-tensorboard", *more),
    ]


@pytest.fixture(scope="module")
def finished(files: Path, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("run") / "run"
    assert main(arguments(files, run_dir)) == 0
    return run_dir


def result(run_dir: Path) -> dict:
    return json.loads((run_dir / "result.json").read_text(encoding="utf-8"))


def test_it_learns_and_stands_beside_the_baseline(finished: Path) -> None:
    found = result(finished)
    # Knowing nothing but the letters takes about 4 bits.
    assert found["test"]["bits_per_byte"] < 1.5
    assert 0 < found["baseline"]["measured"] < 1.5
    page = (finished / "report.html").read_text(encoding="utf-8")
    manifest = json.loads((finished / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["data_fingerprint"] in page
    assert f"{found['test']['bits_per_byte']:.3f}" in page
    assert "<script" not in page and page.count("<svg") == 1


def test_evaluate_measures_what_training_reported(finished: Path, capsys) -> None:
    assert main(["evaluate", str(finished)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("test: ")
    assert f"bits_per_byte {result(finished)['test']['bits_per_byte']:.4f}" in said
    assert main(["evaluate", str(finished), "--split", "validation"]) == 0
    validation = result(finished)["validation"]["bits_per_byte"]
    assert f"bits_per_byte {validation:.4f}" in capsys.readouterr().out


def test_predict_adds_up_to_what_evaluate_measures(finished: Path, files: Path, capsys) -> None:
    texts = documents(12, 2)
    assert main(["predict", str(finished), *texts, "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["".join(word for word, _ in one["words"]) for one in found] == texts
    bits = sum(sum(cost for _, cost in one["words"]) + one["end"] for one in found)
    per_byte = bits / sum(len(text.encode()) for text in texts)
    assert per_byte == pytest.approx(result(finished)["test"]["bits_per_byte"], rel=1e-4)


def test_predict_reads_lines_and_is_surprised_by_the_odd_word(
    finished: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("sys.stdin", iter(["The cat sleeps.\n", "\n", "The cat zzz ß.\n"]))
    assert main(["predict", str(finished)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    usual, odd = (float(lines[i].split()[0]) for i in (0, 3))
    assert odd > usual + 1
    assert lines[1].strip().startswith("The[") and " ß.[" in lines[4]


def test_a_sample_is_written_as_it_comes_and_repeats(finished: Path, capsys) -> None:
    options = ["sample", str(finished), "The dog", "--max-tokens", "100", "--samples", "2"]
    assert main(options) == 0
    first = capsys.readouterr().out
    assert first.startswith("The dog") and first.count("-" * 40) == 1
    assert main(options) == 0
    assert capsys.readouterr().out == first
    assert main([*options, "--seed", "7"]) == 0
    assert capsys.readouterr().out != first
    assert main(["sample", str(finished), "The ß", "--temperature", "0"]) == 0
    assert "1 characters of the prompt never occurred" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sample_goes_on_beyond_the_context(finished: Path) -> None:
    from attnjax.models.decode import Sampling

    language = Language.load(finished)
    # So hot that the end is not drawn soon; more tokens than a row has.
    hot = Sampling(temperature=30.0)
    lengths = [
        len("".join(language.sample("The ", max_tokens=90, sampling=hot, seed=seed)))
        for seed in range(6)
    ]
    assert max(lengths) > 40 and max(lengths) <= 90


def test_a_finished_run_is_not_trained_again(finished: Path, files: Path, capsys) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    assert main(arguments(files, finished)) == 0
    assert (finished / "metrics.jsonl").read_bytes() == before
    assert main(arguments(files, finished, "--windows", "random")) == 2
    assert "windows" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_leaves_nothing_behind(files: Path, tmp_path: Path, capsys) -> None:
    assert main(arguments(files, tmp_path / "run", "--train.dry-run")) == 0
    said = capsys.readouterr().out
    assert "temporaries" in said and "% full" in said
    assert not (tmp_path / "run").exists()
    task, config = prepare(arguments(files, tmp_path / "run"))
    assert task.data.train_size > 20 and config.batch_size == 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_seeds_random_windows_and_other_tokens(
    kind: str, files: Path, tmp_path: Path, capsys
) -> None:
    options = ("--seeds", "0", "1", "--train.epochs", "1", "--windows", "random")
    more = ("--tokens.kind", kind, "--tokens.max-vocabulary", "300", "--train.accumulate", "2")
    assert main(arguments(files, tmp_path / "run", *options, *more)) == 0
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"seed-0", "seed-1"}
    table = capsys.readouterr().out.splitlines()[-6:]
    assert [line.split()[0] for line in table] == ["seed", "0", "1", "mean", "sd", "base"]


@pytest.mark.slow
def test_nanogpts_small_setting_learns_tiny_shakespeare(shared_data, tmp_path: Path) -> None:
    path = shared_data("language_modelling/tinyshakespeare/input.txt.gz")
    options = [
        *("--data", str(path), "--data.test-fraction", "0", "--run-dir", str(tmp_path / "run")),
        *("--tokens.kind", "character", "--length", "64", "--windows", "random"),
        *("--model.dropout", "0", "--model.no-bias", "--model.attention.no-bias"),
        *("--model.attention.positions", "learned", "--train.steps", "300"),
        *("--train.epochs", "None", "--train.batch-size", "12", "--train.no-progress"),
        *("--train.optim.learning-rate", "1e-3", "--train.optim.schedule.warmup-steps", "100"),
    ]
    assert main(options) == 0
    # 2.5 is what pairs of letters give.
    assert result(tmp_path / "run")["validation"]["nats_per_character"] < 2.45


def test_excerpts_prefer_long_documents() -> None:
    assert excerpts(["a" * 300, "b", "c" * 5000]) == ["a" * 300, "c" * 1200]
    assert excerpts(["a", "b", "c", "d"]) == ["a", "b", "d"]


BAD_FILES: dict[str, tuple[str, bytes, list[str], str]] = {
    "a path that is not there": ("", b"", ["--data", "nowhere.txt"], "nowhere.txt: no such file"),
    "an empty file": ("a.txt", b"", [], "there is no text in it"),
    "blank lines": ("a.txt", b"\n \n\t\n", ["--data.document", "line"], "there is no text in it"),
    "wrong encoding": ("a.txt", b"ok\ncaf\xe9", [], "line 2: not utf-8 text"),
    "unknown encoding": ("a.txt", b"ok", ["--data.encoding", "klingon"], "klingon"),
    "corrupt gzip": ("a.txt.gz", gzip.compress(os.urandom(99))[:-20], [], "not a whole gzip file"),
    "text named gzip": ("a.txt.gz", b"just text", [], "not a whole gzip file"),
    "broken JSON": ("a.jsonl", b'{"text": "a"}\n{"text"', [], "line 2: not JSON"),
    "no object": ("a.jsonl", b"3", [], "line 1: expected a JSON object, got int"),
    "no column": ("a.jsonl", b'{"a": "b"}', [], "the columns are ['a']. Give --data.column"),
    "no such column": ("a.jsonl", b'{"text": "b"}', ["--data.column", "t"], "no column t"),
    "no string": ("a.jsonl", b'{"text": null}', [], "expected a string as 'text', got None"),
    "half a character": ("a.jsonl", b'{"text": "\\ud800"}', [], "half a character"),
    "one document": ("a.txt", b"only one", ["--data.hold-out", "documents"], "more than 2"),
    "too short": ("a.txt", b"ab", [], "the validation split holds no documents"),
    "shorter than a window": ("a.txt", b"abcdefgh" * 3, ["--windows", "random"], "smaller length"),
    "no tfds data set": ("", b"", ["--data", "tfds:no_such_data"], "no data set 'no_such_data'"),
    "a mesh of devices that are not there": ("a.txt", b"x" * 99, ["--mesh", "data=64"], "mesh"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_data_is_one_message_and_status_2(case: str, tmp_path: Path, capsys) -> None:
    name, content, options, message = BAD_FILES[case]
    where = []
    if name:
        (tmp_path / name).write_bytes(content)
        where = ["--data", str(tmp_path / name)]
    run_dir = tmp_path / "run"
    assert main(["--run-dir", str(run_dir), "--train.no-progress", *where, *options]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (run_dir / "checkpoints").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--length", "1"], "length must be at least 2"),
        (["--tokens.kind", "word"], "word"),
        (["--tokens.max-vocabulary", "100"], "at least 258"),
        (["--model.heads", "3"], "multiple of heads 3"),
        (["--data.test", "t.txt"], "go with files"),
        (["--data", "builtin", "a.txt"], "builtin alone"),
        (["sample", "run", "--max-tokens", "0"], "max_tokens must be at least 1"),
        (["sample", "run", "--seed", "-1"], "seed must not be negative"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(options)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sample", "predict", "evaluate"])
def test_a_folder_that_is_no_run_is_named(command: str, tmp_path: Path, capsys) -> None:
    texts = ["text"] if command == "predict" else []
    assert main([command, str(tmp_path / "nowhere"), *texts]) == 2
    assert "nowhere is no run directory of language modelling" in capsys.readouterr().err


def test_a_checkpoint_of_another_config_is_refused(finished: Path, tmp_path: Path, capsys) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(finished, other)
    config = json.loads((other / "config.json").read_text())
    config["task"]["model"]["features"] = 24
    (other / "config.json").write_text(json.dumps(config))
    assert main(["evaluate", str(other)]) in (2, 4)
    error = capsys.readouterr().err
    assert "other" in error and "Traceback" not in error


def test_wrong_sampling_is_refused(finished: Path, capsys) -> None:
    assert main(["sample", str(finished), "--top-p", "2"]) == 2
    assert "top_p" in capsys.readouterr().err
    assert main(["evaluate", str(finished), "--split", "test"]) == 0
