"""Text classification on a mesh, through its command line: the numbers of one device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.train.test_text_classification import arguments, write_files
from train.common.metrics import read_history
from train.text_classification import main

pytestmark = [pytest.mark.mesh, pytest.mark.slow]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_files(tmp_path_factory.mktemp("files"))


def history(files: dict[str, Path], run_dir: Path, *more: str) -> dict[str, list[float]]:
    options = ("--train.steps", "20", "--train.epochs", "None", "--train.log-every", "1")
    assert main(arguments(files, run_dir, *options, *more)) == 0
    rows = read_history(run_dir / "metrics.jsonl")
    return {
        kind: [row["loss"] for row in rows if row["kind"] == kind] for kind in ("train", "eval")
    }


@pytest.mark.parametrize(
    ("model", "mesh"),
    [
        ("transformer", "data=2,model=2,seq=2"),
        ("transformer", "fsdp=8"),
        ("bilstm_attention", "data=-1"),
    ],
)
def test_the_numbers_of_one_device(
    model: str,
    mesh: str,
    files: dict[str, Path],
    tmp_path: Path,
) -> None:
    one = history(files, tmp_path / "one", "--model", model)
    found = history(files, tmp_path / "mesh", "--model", model, "--mesh", mesh)
    assert len(one["train"]) == 20
    for kind in one:
        np.testing.assert_allclose(found[kind], one[kind], rtol=2e-5)
    # The finished run's model needs no mesh.
    assert main(["predict", str(tmp_path / "mesh"), "the red cat"]) == 0


def test_a_model_without_sequences_to_split(files: dict[str, Path], tmp_path: Path, capsys) -> None:
    given = arguments(files, tmp_path / "run", "--model", "bilstm_attention")
    assert main([*given, "--mesh", "data=4,seq=2"]) == 2
    assert "seq=2 splits sequences inside attention layers" in capsys.readouterr().err
    assert main([*given, "--mesh", "data=3"]) == 2
    assert "multiply to the 8 devices, got 3 of 'data=3'" in capsys.readouterr().err
