"""The page on others' weights: its example runs, its table is complete."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from tests.models.pretrained import tiny

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "pretrained.md").read_text()


def test_example_runs(tmp_path, monkeypatch):
    text = json.loads(np.load(tiny.FROZEN)["texts"].tobytes())["gpt2"]
    monkeypatch.chdir(tmp_path)
    os.mkdir("some-folder")
    tiny.write(tmp_path / "some-folder", text["config"], text["shapes"])
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    names = {"tokens": tiny.tokens(0, 4)}
    exec(compile(example, "<pretrained.md>", "exec"), names)
    assert names["logits"].shape == (tiny.B, 4, tiny.VOCABULARY)
    assert os.path.exists("another-folder/config.json")


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_every_type_has_a_row(name):
    fields = tiny.CONFIGS[name]
    rows = [row for row in PAGE.splitlines() if row.startswith("| `")]
    found = [row for row in rows if f"`{fields['model_type']}`" in row]
    assert len(found) == 1 and f"`{fields['architectures'][0]}`" in found[0]
