"""Bad input to translation: a clear error or a stated, counted skip, and nothing overwritten."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from train.common.files import write_json
from train.common.rundir import CONFIG
from train.translation import Config, main

ROWS = [(f"line {i}", f"Zeile {i}") for i in range(20)]
SOURCES = "".join(f"{source}\n" for source, _ in ROWS)
TARGETS = "".join(f"{target}\n" for _, target in ROWS)
CUT = gzip.compress(SOURCES.encode())[:-9]
JSONL = "".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in ROWS)

PAIR = ("--data", "a.en", "--data.target", "a.de")
BAD: dict[str, tuple[dict[str, str | bytes], tuple[str, ...], str]] = {
    "a file that is not there": ({}, PAIR, "a.en: no such file"),
    "a target that is not there": ({"a.en": SOURCES}, PAIR, "a.de: no such file"),
    "a prefix of nothing": (
        {"a.en": SOURCES},
        ("--data", "a", "--data.languages", "en", "de"),
        "there is neither a.de nor a.de.gz",
    ),
    "no target": ({"a.en": SOURCES}, PAIR[:2], "give the file with the targets as --data.target"),
    "no validation target": (
        {"a.en": SOURCES, "a.de": TARGETS},
        (*PAIR, "--data.validation", "a.en"),
        "--data.validation-target",
    ),
    "unequal line counts": (
        {"a.en": SOURCES, "a.de": TARGETS + "noch eine\n"},
        PAIR,
        "a.en has 20 lines and a.de 21",
    ),
    "empty files": ({"a.en": "", "a.de": ""}, PAIR, "a.en: no line holds a pair of texts"),
    "blank targets only": (
        {"a.en": SOURCES, "a.de": " \n" * 20},
        PAIR,
        "a.en: no line holds a pair of texts",
    ),
    "two pairs for three splits": (
        {"a.en": "x\ny\n", "a.de": "u\nv\n"},
        PAIR,
        "the train split holds no pairs",
    ),
    "wrong encoding": (
        {"a.en": SOURCES, "a.de": TARGETS.encode() + b"f\xfcnf\n"},
        PAIR,
        "a.de, line 21: not utf-8 text",
    ),
    "an unknown encoding": (
        {"a.en": SOURCES, "a.de": TARGETS},
        (*PAIR, "--data.encoding", "utf-9"),
        "utf-9",
    ),
    "a corrupt .gz": (
        {"a.en.gz": CUT, "a.de": TARGETS},
        ("--data", "a.en.gz", "--data.target", "a.de"),
        "a.en.gz: not a whole gzip file",
    ),
    "a .gz that is none": (
        {"a.en.gz": SOURCES, "a.de": TARGETS},
        ("--data", "a.en.gz", "--data.target", "a.de"),
        "a.en.gz: not a whole gzip file",
    ),
    "a table without a target": (
        {"a.csv": "source,other\nx,y\n"},
        ("--data", "a.csv"),
        "line 1: no column is known as the target; the columns are ['source', 'other']",
    ),
    "a table without the column asked for": (
        {"a.jsonl": JSONL},
        ("--data", "a.jsonl", "--data.target-column", "german"),
        "line 1: no column 'german'",
    ),
    "a table and a target file": (
        {"a.jsonl": JSONL, "a.de": TARGETS},
        ("--data", "a.jsonl", "--data.target", "a.de"),
        "a.jsonl is a table that holds the targets, too",
    ),
    "a cell too many": (
        {"a.tsv": "source\ttarget\nx\ty\tz\n"},
        ("--data", "a.tsv"),
        "line 2: expected 2 columns",
    ),
    "a list as target": (
        {"a.jsonl": JSONL + '{"source": "x", "target": ["y"]}\n'},
        ("--data", "a.jsonl"),
        "a.jsonl, line 21: expected a string",
    ),
    "no JSON": ({"a.jsonl": JSONL + "{oops\n"}, ("--data", "a.jsonl"), "line 21: not JSON"),
    "all too long": (
        {"a.en": SOURCES, "a.de": TARGETS},
        (*PAIR, "--tokens.max-target", "2"),
        "training pairs are longer than max_source=64 or max_target=2",
    ),
    "two vocabularies to copy between": (
        {"a.en": SOURCES, "a.de": TARGETS},
        (*PAIR, "--model.copy", "--tokens.no-joint", "--label-smoothing", "0"),
        "copying needs one vocabulary",
    ),
    "smoothing and copying": (
        {"a.en": SOURCES, "a.de": TARGETS},
        (*PAIR, "--model.copy"),
        "expected label_smoothing 0, got 0.1",
    ),
    "a metric that is not measured": (
        {"a.en": SOURCES, "a.de": TARGETS},
        (*PAIR, "--train.select-metric", "accuracy"),
        "select_metric must be one of",
    ),
    "a metric whose best is its least": (
        {"a.en": SOURCES, "a.de": TARGETS},
        (*PAIR, "--train.select-metric", "loss"),
        "the best loss is its min: expected select_mode min",
    ),
    "an unknown data set": ({}, ("--data", "tfds:no_such_data"), "no data set 'no_such_data'"),
    "a language that the builtin data lacks": (
        {},
        ("--data.languages", "en", "xx"),
        "no language xx, only en, de",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_input_is_one_message_and_nothing_is_trained(
    name: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    files, options, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    for file, content in files.items():
        Path(file).write_bytes(content.encode() if isinstance(content, str) else content)
    small = ("--model.features", "8", "--train.epochs", "1", "--train.no-progress")
    assert main([*options, *small, "--run-dir", "run", "--data.data-dir", "data"]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not Path("run", "result.json").exists()


WRONG_OPTIONS = [
    (["--data.target", "t.de"], "--data.target goes with a file"),
    (["--data", "a", "--data.test-target", "t"], "goes with --data.test"),
    (["--data.languages", "en", "en"], "languages must be two"),
    (["--data", "a", "--data.target", "b", "--data.languages", "en", "de"], "give one of them"),
    (["--data.test-fraction", "1.5"], "test_fraction must lie between 0 and 1"),
    (["--data.max-train", "0"], "max_train must be at least 1"),
    (["--tokens.max-source", "1"], "max_source must be at least 2"),
    (["--tokens.max-vocabulary", "0"], "max_vocabulary must be at least 1"),
    (["--model.features", "30"], "multiple of heads"),
    (["--model.dropout", "1"], "dropout must lie in [0, 1)"),
    (["--model.attention.window", "0"], "window must be positive"),
    (["--label-smoothing", "1"], "label_smoothing must lie in [0, 1)"),
    (["--decoding.beams", "0"], "beams must be at least 1"),
    (["--model", "cnn"], "cnn"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS)
def test_options_that_mean_nothing_are_refused(options: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(options)
    assert caught.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """What a run leaves before its first step."""
    config = Config(run_dir=tmp_path / "run")
    rows = {"source": [row[0] for row in ROWS], "target": [row[1] for row in ROWS]}
    for side, name in (("source", "source_tokens.json"), ("target", "target_tokens.json")):
        tokeniser = config.tokens.tokens.train(rows[side])
        config.run_dir.mkdir(exist_ok=True)
        tokeniser.save(config.run_dir / name)
    described = json.loads(json.dumps({"task": config.describe()}))
    write_json(config.run_dir / CONFIG, described)
    return config.run_dir


def test_what_is_no_run_is_named(run_dir: Path, capsys) -> None:
    for command in (["predict", str(run_dir / "no"), "a text"], ["evaluate", str(run_dir / "no")]):
        assert main(command) == 2
        assert "is no run directory of a task that writes texts" in capsys.readouterr().err
    (run_dir / "source_tokens.json").write_text("{broken")
    assert main(["predict", str(run_dir), "a text"]) == 2
    assert "tokenisers can't be read" in capsys.readouterr().err


def test_a_run_without_checkpoints_is_named(run_dir: Path, capsys) -> None:
    assert main(["predict", str(run_dir), "a text"]) == 4
    assert "no checkpoint of" in capsys.readouterr().err
