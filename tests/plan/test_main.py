import json
import sys
import types

import pytest

from attnjax.plan import compiling, report, targets
from attnjax.plan.__main__ import FITS, TOO_LARGE, WRONG_USE, main
from attnjax.plan.language_training import Training
from attnjax.plan.workload import make_mesh
from attnjax.sharding.laying import mesh_sizes
from tests.train.toy import toy_task, toy_train


@pytest.fixture
def libtpu():
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install libtpu")


def _own_figures(job, target, mesh):
    """What the compiler says of a workload that is compiled in the usual way."""
    target = targets.find(target)
    workload = job.make(make_mesh(target, mesh_sizes(mesh, target.devices)))
    with compiling.building_for(target, workload):
        compiled = workload.function.lower(*workload.arguments.values()).compile()
    return compiled.memory_analysis()


def test_a_language_model(libtpu, tmp_path, capsys):
    options = "--model lm-tiny --batch 4 --sequence 256 --remat none"
    files = f"--json {tmp_path}/deep/plan.json --plot {tmp_path}/deep/plan.png"
    assert main([*f"--target v5e-4 --mesh fsdp=4 {options} {files}".split()]) == FITS
    text = capsys.readouterr().out
    found = json.loads((tmp_path / "deep" / "plan.json").read_text())
    assert (tmp_path / "deep" / "plan.png").read_bytes().startswith(b"\x89PNG")
    memory = found["memory"]
    said = _own_figures(Training("lm-tiny", 4, 256, remat="none"), "v5e-4", "fsdp=4")
    assert memory["total"] == (
        said.argument_size_in_bytes
        + said.output_size_in_bytes
        - said.alias_size_in_bytes
        + said.temp_size_in_bytes
        + said.generated_code_size_in_bytes
    )
    assert memory["total"] == sum(memory["kinds"].values()) and memory["fits"]
    # Each of four devices has a quarter of the parameters, but for norms, and Adam's two of each.
    count = int(found["title"].split("(")[1].split()[0].replace(",", ""))
    assert memory["kinds"]["parameters"] == pytest.approx(count, rel=0.01)
    assert memory["kinds"]["optimizer"] == pytest.approx(2 * count, rel=0.01)
    gathered = [c for c in found["collectives"] if c["axes"] == ["fsdp"]]
    assert gathered and all(c["devices"] == 4 and c["bytes"] > 0 for c in found["collectives"])
    # Two layers: forward and backward of all their products, and of the output matrix.
    tokens, width = 4 * 256, 256
    matrices = 2 * (4 * width * width + 3 * width * 768) + 1024 * width
    others = found["flops"]["total"] - found["flops"]["kernels"]
    recomputed = 2 * tokens * 1024 * width  # the logits
    assert others == 3 * 2 * tokens * matrices + recomputed
    seconds = found["seconds"]
    assert 0 < seconds["overlapped"] <= seconds["scheduled"] <= seconds["total"]
    for said_so in ("the compiler's own figure", "fits:", "real clocks", "Collectives"):
        assert said_so in text


def test_an_attention_call_over_a_sequence(libtpu, tmp_path, capsys):
    call = "--attention 2,512,4,2,64 --mask causal --method ulysses --forward"
    path = tmp_path / "plan.json"
    assert main([*f"--target v5e-4 --mesh seq=4 {call} --json {path}".split()]) == FITS
    found = json.loads(path.read_text())
    assert "forward" in found["title"] and "backward" not in found["title"]
    (exchange,) = found["collectives"]
    assert (exchange["kind"], exchange["axes"]) == ("all-to-all", ["seq"])
    # One block of 512 by 512 for each of 2 * 4 heads, and two products in it.
    assert found["flops"] == {"total": 2 * 8 * 512 * 512 * 128, "kernels": 2 * 8 * 512 * 512 * 128}
    assert "attention of 2 x 512 queries" in capsys.readouterr().out


def test_what_does_not_fit_says_by_how_much(libtpu, tmp_path, capsys):
    path = tmp_path / "plan.json"
    call = "--attention 64,131072,8,8,128 --compiles 0"
    assert main([*f"--target v5e-4 {call} --json {path}".split()]) == TOO_LARGE
    found = json.loads(path.read_text())["memory"]
    assert not found["fits"] and found["headroom"] < 0
    # Four arrays come in and four go out, of which a device has 16 examples.
    assert found["total"] >= 8 * 16 * 131072 * 8 * 128 * 2
    more = report.size_of(-found["headroom"])
    assert f"DOES NOT FIT: {more} more than the 15.75 GiB" in capsys.readouterr().out


def test_a_training_run(libtpu, tmp_path, monkeypatch, capsys):
    module = types.ModuleType("toy_entrypoint")
    module.prepare = lambda argv: (toy_task(), toy_train(mesh=argv[1], batch_size=16))
    monkeypatch.setitem(sys.modules, "toy_entrypoint", module)
    path = tmp_path / "plan.json"
    given = [*f"--target v5e-4 --json {path} -- toy_entrypoint --mesh data=2,fsdp=2".split()]
    assert main(given) == FITS
    found = json.loads(path.read_text())
    assert found["mesh"] == {"data": 2, "fsdp": 2, "model": 1, "seq": 1}
    assert {"parameters", "optimizer", "other state", "inputs"} <= {*found["memory"]["kinds"]}
    assert any(c["kind"] == "all-reduce" for c in found["collectives"])
    assert "a training step of toy_entrypoint" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--target v5e-17 --model lm-tiny", "near it: v5e-8, v5e-16, v5e-32"),
        ("--target v5e-4", "expected one of --model NAME, --attention"),
        ("--target v5e-4 --model lm-tiny --attention 1,1,1,1,1", "expected one of --model NAME"),
        ("--target v5e-4 --model lm-tiny --mesh fsdp=3", "multiply to the 4 devices, got 3"),
        ("--target v5e-4 --model lm-tiny --batch 6 --mesh fsdp=4", "batch: expected parts of"),
        ("--target v5e-4 --attention 1,8,1,1,8 --mesh seq=3,fsdp=-1", "mesh: expected sizes"),
        ("--target v5e-4 -- train.nothing", "'train.nothing': No module named"),
        ("--target v5e-4 -- train.common", "train.common has no function prepare"),
    ],
)
def test_wrong_use_is_answered(given, message, libtpu, capsys):
    assert main(given.split()) == WRONG_USE
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_changes_are_compiled_before_they_are_named(libtpu, capsys):
    call = "--attention 64,131072,8,8,128 --mask causal"
    assert main([*f"--target v5e-4 {call}".split()]) == TOO_LARGE
    text = capsys.readouterr().out
    named = text.split("each was compiled:")[1].strip().splitlines()
    assert len(named) == 3 and all("are left" in line for line in named)
    option = named[0].split("- ")[1].split(":")[0].split()
    assert main([*f"--target v5e-4 {call} --compiles 0".split(), *option]) == FITS
