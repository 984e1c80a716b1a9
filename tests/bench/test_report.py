"""Reports hold what was measured, and comparisons tell differences from noise."""

import copy
import json
import re

import pytest

from attnjax.bench import report
from attnjax.bench.__main__ import main
from attnjax.bench.compare import compare, exceeds_noise
from attnjax.bench.fingerprint import fingerprint


def _row(name, samples, **more):
    median = sorted(samples)[len(samples) // 2]
    return {
        **report.entry(name, "causal", "fwd", "ok", ""),
        "samples": samples,
        "median": median,
        "ratio": median / 0.002,
        "tflops": 1.5,
        "share": 0.25,
        "temporaries": 2**21,
        "note": "",
        **more,
    }


@pytest.fixture
def result():
    return {
        "suite": "cpu",
        "fingerprint": {**fingerprint(), "git": {"commit": "5eed" * 10, "changed": True}},
        "settings": {"rounds": 3},
        "unit": "s",
        "matrix_tflops": 6.0,
        "seconds": 1.0,
        "rows": [
            report.entry("splash", "all", "all", "absent", "needs tpu; this is cpu"),
            _row("attnjax", [0.0019, 0.002, 0.0021], note="blockwise", disturbed=True),
            _row("peer", [0.003, 0.004, 0.005], temporaries=None),
            report.entry("other", "causal", "fwd", "refused", "knows no masks"),
        ],
    }


def test_the_files_hold_everything(result, tmp_path):
    pytest.importorskip("matplotlib")
    said = report.write(result, tmp_path / "new")
    assert [x.split("/")[-1] for x in said] == ["cpu.json", "cpu.md", "cpu.png"]
    assert report.read(tmp_path / "new" / "cpu.json") == {"version": report.VERSION, **result}
    assert (tmp_path / "new" / "cpu.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "new" / "cpu.md").read_text()
    for part in (
        "| attnjax (blockwise), while another was still getting ready | 2.000 ms | "
        "1.900 ms to 2.100 ms | 1.00 | 1.50 | 25% | 2.0 MiB |",
        "| peer | 4.000 ms | 3.000 ms to 5.000 ms | 2.00 | 1.50 | 25% |  |",
        "- other: refused: knows no masks",
        "- splash: needs tpu; this is cpu",
        "matrix products: 6.00 TFLOP/s",
        "commit 5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed, with changes",
    ):
        assert part in text


def test_without_matplotlib_the_plot_is_left_out_and_said_so(result, tmp_path, monkeypatch):
    def plot(result, path):
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr(report, "_plot", plot)
    assert "matplotlib is missing" in report.write(result, tmp_path)[-1]
    assert (tmp_path / "cpu.md").exists()


def test_counts_of_a_compiler_are_tabled(result):
    rows = [
        {**_row("attnjax", [1000]), "ratio": None, "spills": 7, "detail": "one kernel"},
        {**_row("peer", [1500]), "ratio": 1.5, "spills": 1234, "detail": "two"},
    ]
    text = report.markdown({**result, "unit": "cycles", "rows": rows})
    assert "| peer | 1,500 cycles | 1,500 cycles to 1,500 cycles | 1.50 | 1,234 | two |" in text


def test_the_fingerprint_tells_what_ran():
    found = json.loads(json.dumps(fingerprint()))
    assert found["device"]["platform"] == "cpu" and found["device"]["count"] >= 1
    assert {"jax", "jaxlib", "numpy"} <= set(found["packages"])
    assert found["processor"]["cores"] >= 1
    assert found["date"].endswith("+00:00")
    # A copy of the code may be no checkout.
    assert found["git"] is None or re.fullmatch("[0-9a-f]{40}", found["git"]["commit"])


def test_differences_beyond_the_noise(result):
    after = copy.deepcopy(result)
    after["matrix_tflops"] = 3.0
    after["rows"][1].update(samples=[0.0020, 0.0022, 0.0024], median=0.0022)
    after["rows"][2].update(samples=[0.0010, 0.0020, 0.0029], median=0.0020)
    after["rows"][3]["contestant"] = "new"
    after["settings"] = {"rounds": 5}
    lines = list(compare(result, after))
    assert "| causal | fwd | attnjax | 2.000 ms | 2.200 ms | 1.100 | no |" in lines
    assert "| causal | fwd | peer | 4.000 ms | 2.000 ms | 0.500 | faster |" in lines
    assert "| causal | fwd | other | refused | not asked |  |  |" in lines
    assert "| causal | fwd | new | not asked | refused |  |  |" in lines
    assert "rate of matrix products: 0.500 times as fast" in lines
    assert any(x.startswith("settings differ") for x in lines)
    assert "slower" in next(x for x in compare(after, result) if "peer" in x)


def test_other_machines_are_named_and_other_suites_refused(result):
    other = copy.deepcopy(result)
    other["fingerprint"]["device"]["kind"] = "abacus"
    assert any(x.startswith("device differs") and "abacus" in x for x in compare(result, other))
    with pytest.raises(ValueError, match="two results of one suite"):
        list(compare(result, {**other, "suite": "gpu"}))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([1.0, 2.0], [2.0, 3.0], False),
        ([1.0, 2.0], [2.1, 3.0], True),
        ([3.0, 4.0], [1.0, 2.0], True),
        ([5.0], [5.0], False),
        ([5.0], [5.1], True),
    ],
)
def test_noise_is_where_samples_overlap(before, after, expected):
    assert exceeds_noise({"samples": before}, {"samples": after}) is expected


def test_the_command_compares_files(result, tmp_path, capsys):
    for name in ("before", "after"):
        report.write(result, tmp_path / name)
    files = [str(tmp_path / name / "cpu.json") for name in ("before", "after")]
    capsys.readouterr()
    assert main(["--compare", *files]) == 0
    assert "| causal | fwd | peer | 4.000 ms | 4.000 ms | 1.000 | no |" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["nothing", "[]", '{"version": 0}'])
def test_what_is_no_result_is_refused(text, tmp_path, capsys):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(SystemExit):
        main(["--compare", str(path), str(path)])
    assert "expected" in capsys.readouterr().err
