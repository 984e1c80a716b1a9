"""The bench that every test here runs the scripts on."""

from pathlib import Path

import pytest

from tests.tpu_scripts.bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)
