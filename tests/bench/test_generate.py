"""The measurement of generating compares tokens first, and prints what it measured."""

import json
import re

import jax
import pytest
from flax import nnx

from attnjax.bench import generate

pytest.importorskip("torch", reason="is measured beside transformers, which needs torch")
pytest.importorskip("transformers", reason="is what generating is measured beside")
pytest.importorskip("safetensors", reason="is what weights are handed over in")

TINY = {"features": 16, "layers": 1, "heads": 2, "hidden": 24, "vocabulary": 30}
pytestmark = pytest.mark.filterwarnings("default")  # of torch and transformers


def test_both_give_the_same_tokens_and_figures_follow(capsys, tmp_path):
    path = tmp_path / "generate.json"
    sizes = [f"--{name}={value}" for name, value in {**TINY, "prompt": 3, "tokens": 4}.items()]
    assert generate.main([*sizes, "--batch", "2", "--rounds", "2", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^\| 2 \| attnjax \| [\d.]+ \| [\d.]+ \| all \| [\d.]+ \|$", printed, re.M)
    assert re.search(
        r"^\| 2 \| transformers \| [\d.]+ \| [\d.]+ \| \d+ \| 1\.00 \|$", printed, re.M
    )
    (found,) = json.loads(path.read_text())["found"]
    assert len(found["ours"]) == len(found["theirs"]) == 2 and found["ratio"] > 0


def test_other_weights_are_found_before_any_timing():
    sizes = generate.Sizes(**TINY, prompt=3, tokens=8)
    theirs, ours = generate.models(sizes)
    graphdef, params, rest = nnx.split(ours, nnx.Param, ...)
    wrong = nnx.merge(graphdef, jax.tree.map(lambda x: x[::-1], params), rest)
    with pytest.raises(AssertionError, match="attnjax and transformers differ"):
        generate.measure(theirs, wrong, sizes, 2, rounds=1)


@pytest.mark.parametrize("argv", [["--batch", "0"], ["--rounds", "-1"], ["--layers", "two"]])
def test_bad_counts_are_refused(argv, capsys):
    with pytest.raises(SystemExit):
        generate.main(argv)
    assert "error: argument" in capsys.readouterr().err
