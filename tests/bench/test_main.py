"""The command measures, writes its reports and refuses what it does not know."""

import json

import jax
import pytest

from attnjax.bench.__main__ import main


@pytest.fixture(autouse=True)
def _same_platforms(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    before = jax.config.jax_platforms
    yield
    jax.config.update("jax_platforms", before)


def test_a_suite_is_measured_and_written(tmp_path, capsys):
    tiny = ["--length", "64", "--heads", "2", "--width", "16", "--batch", "1", "--matrix", "64"]
    chosen = ["--case", "window", "--direction", "fwd", "--rounds", "2"]
    who = ["--contestant", "attnjax", "--contestant", "flax", "--contestant", "splash"]
    assert main(["cpu", *tiny, *chosen, *who, "--limit", "60", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "cpu.json").read_text())
    assert result["settings"]["shape"] == {"B": 1, "T": 64, "N": 2, "H": 16, "dtype": "float32"}
    rows = {x["contestant"]: x for x in result["rows"]}
    assert {n: x["status"] for n, x in rows.items()} == {
        "attnjax": "ok",
        "flax": "ok",
        "splash": "absent",
    }
    assert {x["case"] for x in result["rows"]} == {"window", "all"}
    assert result["fingerprint"]["flags"]["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert "x attnjax" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "expected a suite, cpu, gpu, tpu, tpu-static, gpu-static"),
        (["cpus"], "got cpus"),
        (["gpu"], "needs a GPU; jax found cpu"),
        (["tpu"], "needs a TPU; jax found cpu"),
        (["cpu", "gpu"], "expected gpu or tpu by itself"),
        (["cpu", "--contestant", "nobody"], "got nobody"),
        (["cpu", "--rounds", "0"], "expected at least 1; got 0"),
        (["tpu-static", "--target", "v3"], "expected targets of v5e, v5p, v6e, tpu7x; got v3"),
        (["--compare", "no.json", "no.json"], "No such file"),
    ],
)
def test_what_can_not_be_done_is_refused(argv, message, capsys):
    with pytest.raises(SystemExit):
        main(argv)
    assert message in capsys.readouterr().err
