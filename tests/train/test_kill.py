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


def check(tmp_path: Path, *, kills: int, steps: int, longest: float) -> None:
    killed_dir, calm_dir, again_dir = (tmp_path / name for name in ("killed", "calm", "again"))
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
    for calm in (calm_dir, again_dir):
        run_until_done(command(calm, steps=steps, delay=0.0))
    wanted = last_arrays(calm_dir)
    assert len(wanted) > 20
    assert last_arrays(again_dir) == wanted
    assert last_arrays(killed_dir) == wanted
    history = without_times(calm_dir / "metrics.jsonl")
    assert history[-1]["step"] == steps
    assert without_times(again_dir / "metrics.jsonl") == history
    assert without_times(killed_dir / "metrics.jsonl") == history


def test_three_kills(tmp_path: Path) -> None:
    check(tmp_path, kills=3, steps=150, longest=1.0)


@pytest.mark.slow
def test_twenty_kills(tmp_path: Path) -> None:
    check(tmp_path, kills=20, steps=1500, longest=1.0)
