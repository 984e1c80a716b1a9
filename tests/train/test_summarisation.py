"""The whole program through its command line, on texts that take seconds.

`make test` leaves the training out: that of translation goes the same ways.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from train.summarisation import main, prepare

NAMES = ["ann", "bob", "cid", "dan", "eve", "fay", "gus", "hal", "ida", "joe"]
FILLER = ["the", "of", "is", "on", "there", "and", "then"]


def pairs(count: int, seed: int) -> list[dict[str, str]]:
    """The summary is the name in a text of fillers, which has to be copied."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        name = str(rng.choice(NAMES))
        words = [*rng.choice(FILLER, rng.integers(3, 7)).tolist(), name]
        found.append({"text": " ".join(rng.permutation(words)), "summary": f"about {name}"})
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for seed, (name, count) in enumerate({"train": 256, "dev": 16, "test": 16}.items()):
        rows = [json.dumps(row) for row in pairs(count, seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


def arguments(files: Path, run_dir: Path, *more: str) -> list[str]:
    return [
        *("--run-dir", str(run_dir), "--data", str(files / "train.jsonl")),
        *("--data.validation", str(files / "dev.jsonl"), "--data.test", str(files / "test.jsonl")),
        *("--tokens.kind", "word", "--tokens.max-source", "8", "--tokens.max-target", "4"),
        *("--model.features", "16", "--model.heads", "2", "--model.dropout", "0"),
        *("--model.encoder-layers", "1", "--model.decoder-layers", "1", "--decoding.beams", "2"),
        *("--train.batch-size", "16", "--train.eval-batch-size", "16", "--train.epochs", "10"),
        *("--train.eval-every", "80", "--train.optim.learning-rate", "0.01"),
        *("--train.no-progress", "--train.no-tensorboard", *more),
    ]


@pytest.fixture(scope="module")
def finished(files: Path, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("run") / "run"
    assert main(arguments(files, run_dir)) == 0
    return run_dir


def result(run_dir: Path) -> dict:
    return json.loads((run_dir / "result.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_it_learns_to_copy_and_stands_beside_the_baseline(finished: Path) -> None:
    found = result(finished)
    assert found["test"]["rouge1"] > 80
    assert found["baseline_test"]["rouge1"] < 60
    assert "chosen on validation" in found["baseline"]
    assert "rouge-score" in found["signatures"]["rouge2"]
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "Summarisation" in page and f"{found['test']['rouge1']:.1f}" in page
    assert "<script" not in page and page.count("<svg") >= 2


@pytest.mark.slow
def test_predict_and_evaluate_use_what_was_trained(finished: Path, capsys, monkeypatch) -> None:
    assert main(["predict", str(finished), "on the of bob is there", "--json"]) == 0
    (found,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found["text"] == "about bob" and found["ended"] and not found["source_cut"]
    monkeypatch.setattr("sys.stdin", iter(["the of eve is\n", "\n"]))
    assert main(["predict", str(finished)]) == 0
    assert capsys.readouterr().out == "about eve\n"
    assert main(["evaluate", str(finished), "--decoding.beams", "2"]) == 0
    said = capsys.readouterr().out
    assert f"rouge1 {result(finished)['test']['rouge1']:.2f}" in said and "Porter" in said


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(finished: Path, files: Path, capsys) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    assert main(arguments(files, finished, "--train.epochs", "11")) == 2
    assert "epochs" in capsys.readouterr().err
    assert (finished / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_dry_run_leaves_nothing_behind_and_the_planner_gets_the_task(
    files: Path, tmp_path: Path, capsys
) -> None:
    assert main(arguments(files, tmp_path / "run", "--train.dry-run")) == 0
    assert "temporaries" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    task, config = prepare(arguments(files, tmp_path / "run"))
    assert task.data.train_size == 256 and config.batch_size == 16


@pytest.mark.slow
def test_seeds_get_a_directory_each_and_a_table(files: Path, tmp_path: Path, capsys) -> None:
    options = ("--seeds", "0", "1", "--train.epochs", "1", "--train.eval-every", "16")
    assert main(arguments(files, tmp_path / "run", *options)) == 0
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"seed-0", "seed-1"}
    table = capsys.readouterr().out.splitlines()[-6:]
    assert [line.split()[0] for line in table] == ["seed", "0", "1", "mean", "sd", "base"]


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


GOOD = json.dumps({"text": "a long text", "summary": "short"}).encode() + b"\n"
MAIL = b"body of it\n\n@subject\nthe subject\n"

BAD_FILES: dict[str, tuple[str, bytes, list[str], str]] = {
    "a path that is not there": ("", b"", ["--data", "nowhere.csv"], "nowhere.csv: no such file"),
    "an empty file": ("a.jsonl", b"", [], "no line holds a pair"),
    "blank sides": ("a.jsonl", b'{"text": "a", "summary": " "}', [], "no line holds a pair"),
    "missing column": ("a.jsonl", b'{"text": "a", "title": "b"}', [], "title"),
    "unknown column": ("a.jsonl", GOOD, ["--data.target-column", "headline"], "headline"),
    "broken JSON": ("a.jsonl", GOOD + b'{"text": "a', [], "line 2: not JSON"),
    "no object": ("a.jsonl", GOOD + b"[1]", [], "line 2"),
    "no string": ("a.jsonl", b'{"text": "a", "summary": 3.5}', [], "line 1"),
    "ragged csv": ("a.csv", b"text,summary\na,b\na,b,c\n", [], "line 3: expected 2 columns"),
    "open quote": ("a.csv", b'text,summary\n"a,b\n', [], "line 2"),
    "wrong encoding": ("a.csv", b"text,summary\ncaf\xe9,b\n", [], "line 2: not utf-8 text"),
    "corrupt gzip": (
        "a.csv.gz",
        gzip.compress(b"text,summary\n" * 99, mtime=0)[:-9],
        [],
        "not a whole gzip",
    ),
    "no target file": ("a.txt", b"one\ntwo\n", [], "--data.target"),
    "one pair": ("a.jsonl", GOOD, [], "holds no pairs of texts"),
    "corrupt archive": (
        "a.tar.gz",
        archive({"a.subject": MAIL})[:-20],
        ["--data.validation", "SAME", "--data.test", "SAME"],
        "not a whole tar archive",
    ),
    "mails without subject": (
        "a.tar.gz",
        archive({"a.subject": b"just a body"}),
        ["--data.validation", "SAME", "--data.test", "SAME"],
        "expected a line @subject",
    ),
    "an archive without mails": (
        "a.tar.gz",
        archive({"a.txt": MAIL}),
        ["--data.validation", "SAME", "--data.test", "SAME"],
        "no file named *.subject",
    ),
    "one split of mails": ("a.tar.gz", archive({"a.subject": MAIL}), [], "--data.validation"),
    "no tfds data set": ("", b"", ["--data", "tfds:no_such_data"], "no data set 'no_such_data'"),
    "everything too long": (
        "a.jsonl",
        b"".join(
            json.dumps({"text": "word " * 20 + str(i), "summary": "x"}).encode() + b"\n"
            for i in range(20)
        ),
        ["--tokens.max-source", "8", "--tokens.too-long", "skip"],
        "longer than max_source=8",
    ),
    "smoothing beside copying": (
        "a.jsonl",
        b"".join(GOOD.replace(b"long", str(i).encode()) for i in range(20)),
        ["--label-smoothing", "0.1"],
        "label smoothing and copying do not go together",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_data_is_one_message_and_status_2(case: str, tmp_path: Path, capsys) -> None:
    name, content, options, message = BAD_FILES[case]
    path = tmp_path / name
    where = []
    if name:
        path.write_bytes(content)
        where = ["--data", str(path)]
    given = [str(path) if option == "SAME" else option for option in options]
    run_dir = tmp_path / "run"
    assert main(["--run-dir", str(run_dir), "--train.no-progress", *where, *given]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (run_dir / "checkpoints").exists()


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_folder_that_is_no_run_is_named(command: str, tmp_path: Path, capsys) -> None:
    texts = ["text"] if command == "predict" else []
    assert main([command, str(tmp_path / "nowhere"), *texts]) == 2
    assert "nowhere is no run directory" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_of_another_config_is_refused(finished: Path, tmp_path: Path, capsys) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    config = json.loads((other / "config.json").read_text())
    config["task"]["model"]["features"] = 24
    (other / "config.json").write_text(json.dumps(config))
    assert main(["predict", str(other), "a text"]) in (2, 4)
    error = capsys.readouterr().err
    assert "other" in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.target", "t.txt"], "goes with a file"),
        (["--label-smoothing", "1"], "label_smoothing must lie in"),
        (["--tokens.max-target", "1"], "max_target must be at least 2"),
        (["--decoding.beams", "0"], "beams must be at least 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(options)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
