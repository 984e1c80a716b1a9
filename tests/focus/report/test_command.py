import builtins
import os
import subprocess
import sys

import pytest

from attnjax.focus.__main__ import main
from attnjax.focus.report import Shown, show
from tests.focus.report.runs import write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "one", layers=2, heads=2, steps=3)


def test_report_is_written_and_replaced(run, capsys):
    assert main(["report", str(run)]) == 0
    written = run / "focus.html"
    assert capsys.readouterr().out == f"{written}\n"
    first = written.read_text()
    assert first.startswith("<!doctype html>")
    assert main(["report", str(run)]) == 0
    assert written.read_text() == first  # the same run gives the same bytes
    assert sorted(x.name for x in run.iterdir() if x.suffix not in (".json", ".jsonl")) == [
        "focus.html"
    ]


def test_two_runs_are_compared(run, tmp_path, capsys):
    other = write_run(tmp_path / "two", layers=2, heads=2, steps=3)
    assert main(["compare", str(run), str(other)]) == 0
    assert capsys.readouterr().out == f"{run / 'focus_against_two.html'}\n"
    assert main(["compare", str(run), str(other), "--out", str(tmp_path / "x.html")]) == 0
    assert (tmp_path / "x.html").read_text() == (run / "focus_against_two.html").read_text()


@pytest.mark.parametrize("name", ["mine.html", "focus.html"])
def test_the_files_of_others_are_kept(run, capsys, name):
    out = run / name
    out.write_text("<p>mine</p>")
    assert main(["report", str(run), "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert "is no report of ours: give another --out, or --force" in said.err
    assert out.read_text() == "<p>mine</p>"
    assert main(["report", str(run), "--out", str(out), "--force"]) == 0
    assert out.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["report", "{tmp}/nowhere"], "which is no directory"),
        (["report", "{tmp}"], "which has none of"),
        (["compare", "{run}", "{tmp}/nowhere"], "which is no directory"),
        (["report", "{run}", "--out", "{tmp}/no/such/folder.html"], "a folder that exists"),
        (["report", "{run}", "--out", "{tmp}"], "expected a file to write to, got the folder"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(run, tmp_path, capsys, arguments, reason):
    filled = [x.format(tmp=tmp_path, run=run) for x in arguments]
    assert main(filled) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and reason in said.err
    assert said.err.startswith("attnjax.focus: ")


def test_without_jinja2_it_is_said_how_to_install_it(run, capsys, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "jinja2":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["report", str(run)]) == 2
    assert "pip install 'attnjax[report]'" in capsys.readouterr().err
    assert not (run / "focus.html").exists()


def test_the_command_itself(run):
    done = subprocess.run(
        [sys.executable, "-m", "attnjax.focus", "report", str(run / "nowhere")],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_a_notebook_shows_the_page_in_a_frame(run):
    shown = show(run, height=500)
    assert isinstance(shown, Shown)
    frame = shown._repr_html_()
    assert frame.startswith("<iframe ") and 'sandbox="allow-scripts"' in frame
    assert 'height="500"' in frame
    inside = frame.partition('srcdoc="')[2]
    assert inside.count('"') == 1 and "<" not in inside.removesuffix("></iframe>").rstrip('"')
    assert len(repr(shown)) < 100
