"""Choosing answers on a mesh, through its command line: the numbers of one device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.train.test_dialogue import choose_arguments
from tests.train.toy_dialogues import write_dialogues
from train.common.metrics import read_history
from train.dialogue import main

pytestmark = [pytest.mark.mesh, pytest.mark.slow]


def losses(files: dict[str, Path], run_dir: Path, *more: str) -> list[float]:
    options = ("--train.steps", "10", "--train.epochs", "None", "--train.log-every", "1")
    assert main(choose_arguments(files, run_dir, *options, *more)) == 0
    rows = read_history(run_dir / "metrics.jsonl")
    return [row["loss"] for row in rows if row["kind"] == "train"]


@pytest.mark.parametrize("mesh", ["data=8", "fsdp=4,data=2"])
def test_the_numbers_of_one_device(mesh: str, tmp_path: Path) -> None:
    files = write_dialogues(tmp_path)
    one = losses(files, tmp_path / "one")
    found = losses(files, tmp_path / "mesh", "--mesh", mesh)
    assert len(one) == 10
    np.testing.assert_allclose(found, one, rtol=5e-5)


def test_a_memory_is_not_split(tmp_path: Path, capsys) -> None:
    given = choose_arguments(write_dialogues(tmp_path), tmp_path / "run")
    assert main([*given, "--mesh", "data=4,seq=2"]) == 2
    assert "seq=2 splits sequences inside attention layers" in capsys.readouterr().err
