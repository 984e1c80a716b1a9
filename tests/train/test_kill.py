"""kill -9 at any moment, then the same command: the same bits as a run that was left alone."""

import json
import sys
from pathlib import Path

import pytest

from tests.train.kill import kill_and_rerun, last_arrays, run_until_done


def command(run_dir: Path, *, steps: int, delay: float) -> list[str]:
    return [
        *(sys.executable, "-W", "error", "-m", "tests.train.toy", "--run-dir", str(run_dir)),
        *("--delay", str(delay), "--train.steps", str(steps)),
        *("--train.eval-every", "25", "--train.checkpoint-every", "10"),
        *("--train.ema-decay", "0.99", "--train.progress"),
    ]


def without_times(path: Path) -> list[dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: x for name, x in row.items() if name != "seconds"} for row in rows]


def check(tmp_path: Path, *, kills: int, steps: int, longest: float, calm_runs: int) -> None:
    """Compares a run killed again and again with `calm_runs` runs that were left alone."""
    killed_dir, *calm_dirs = (tmp_path / f"run{i}" for i in range(1 + calm_runs))
    delay = 0.02
    killed = kill_and_rerun(
        command(killed_dir, steps=steps, delay=delay),
        killed_dir,
        kills=kills,
        longest=longest,
        seed=1,
    )
    assert killed.kills == kills
    assert len(set(killed.resumed_steps)) > 1, killed.stderr
    assert "broken" not in killed.stderr
    arrays = last_arrays(killed_dir)
    assert len(arrays) > 20
    history = without_times(killed_dir / "metrics.jsonl")
    assert history[-1]["step"] == steps
    for calm_dir in calm_dirs:
        run_until_done(command(calm_dir, steps=steps, delay=0.0))
        assert last_arrays(calm_dir) == arrays
        assert without_times(calm_dir / "metrics.jsonl") == history


@pytest.mark.slow
def test_three_kills(tmp_path: Path) -> None:
    check(tmp_path, kills=3, steps=150, longest=1.0, calm_runs=1)


@pytest.mark.slow
def test_twenty_kills(tmp_path: Path) -> None:
    check(tmp_path, kills=20, steps=1500, longest=1.0, calm_runs=2)
