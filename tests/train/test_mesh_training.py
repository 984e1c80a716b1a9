"""Training on eight simulated devices: the losses of one, and no device that holds everything."""

from __future__ import annotations

import dataclasses
import itertools
import re
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from attnjax.sharding.laying import AXES
from tests.train.mesh_task import (
    BATCH,
    MODEL,
    RULES,
    language_task,
    language_train,
    losses,
)
from train.common.config import TrainConfig
from train.common.loop import run
from train.common.optim import OptimConfig
from train.common.step import on_device, plan_step

pytestmark = pytest.mark.mesh

EIGHT = [f"{axis}=8" for axis in AXES]
TWO_BY_FOUR = [f"{two}=2,{four}=4" for two, four in itertools.permutations(AXES, 2)]
CUBES = [",".join(f"{axis}=2" for axis in axes) for axes in itertools.combinations(AXES, 3)]


@lru_cache
def on_one_device(layers: int, accumulate: int = 1) -> np.ndarray:
    return losses(language_train(accumulate=accumulate), language_task(num_layers=layers))


def test_the_losses_of_one_device() -> None:
    found = losses(language_train(mesh="fsdp=2,model=2,seq=2"), language_task())
    np.testing.assert_allclose(found, on_one_device(1), rtol=1e-5)
    assert found[-1] < found[0] - 0.3


@pytest.mark.slow
@pytest.mark.parametrize("mesh", EIGHT + TWO_BY_FOUR + CUBES)
def test_the_losses_of_one_device_in_every_assignment(mesh: str) -> None:
    found = losses(language_train(mesh=mesh), language_task(num_layers=2))
    np.testing.assert_allclose(found, on_one_device(2), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ulysses", "allgather"])
def test_the_other_ways_to_split_a_sequence(method: str) -> None:
    config = language_train(mesh="model=2,seq=4", sequence_method=method)
    np.testing.assert_allclose(losses(config, language_task()), on_one_device(1), rtol=1e-5)


@pytest.mark.slow
def test_accumulation_and_rematerialisation_on_a_mesh() -> None:
    config = language_train(mesh="data=2,model=2,seq=2", accumulate=4, remat="full")
    task = language_task(scan_layers=True, num_layers=2)
    wanted = losses(language_train(accumulate=4), task, steps=4)
    np.testing.assert_allclose(losses(config, task, steps=4), wanted, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialisation_saves_memory(remat: str) -> None:
    # Scanned: outside a scan XLA's CPU compiler merges what was to be computed twice.
    task = language_task(scan_layers=True, num_layers=6)
    memory = {}
    for name in ("none", remat):
        config = language_train(mesh="data=8", remat=name)
        start, step = plan_step(task, config)
        batch = next(task.data.train_batches(batch_size=BATCH, seed=0, start_step=0))
        compiled = step.lower(start.like, on_device(batch, start.layout)).compile()
        memory[name] = compiled.memory_analysis().temp_size_in_bytes
    assert memory[remat] < 0.8 * memory["none"], memory


def test_the_state_is_never_whole_on_one_device() -> None:
    """Neither before the first step nor after it, nor while it is made."""
    wide = {"features": 256, "hidden": 1024, "scan_layers": True}
    start, step = plan_step(language_task(**wide), language_train(mesh="fsdp=4,model=2"))
    compiled = start.make.lower().compile()
    kernel = start.like["model"]["params"]["decoder"]["stack"]["layers"]["feed_forward"]["up"]
    assert kernel["kernel"].sharding.spec == P(None, "fsdp", "model")
    assert "f32[1,64,512]" in compiled.as_text()
    assert "[1,256,1024]" not in compiled.as_text()
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(start.like))
    memory = compiled.memory_analysis()
    assert memory.output_size_in_bytes < 1.1 * whole / 8
    assert memory.temp_size_in_bytes < whole / 8
    state = start.make()
    batch = next(language_task().data.train_batches(batch_size=BATCH, seed=0, start_step=0))
    after, _ = step(state, on_device(batch, start.layout))
    assert state["model"]["params"]["embed"]["embedding"].is_deleted()
    for x, like in zip(jax.tree.leaves(after), jax.tree.leaves(start.like), strict=True):
        assert x.sharding.is_equivalent_to(like.sharding, x.ndim)
    moment = after["optimizer"]["opt_state"][1].mu["decoder"]["stack"]["layers"]["feed_forward"]
    assert moment["up"]["kernel"].sharding.spec == P(None, "fsdp", "model")
    assert {s.data.shape for s in moment["up"]["kernel"].addressable_shards} == {(1, 64, 512)}


@pytest.mark.slow
def test_devices_exchange_parameters_not_activations() -> None:
    """Under fsdp alone: what is collected from all devices is a parameter, or one's gradient."""
    start, step = plan_step(language_task(), language_train(mesh="fsdp=8"))
    batch = next(language_task().data.train_batches(batch_size=BATCH, seed=0, start_step=0))
    text = step.lower(start.like, on_device(batch, start.layout)).compile().as_text()
    collected = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather(?:-start)?\(", text)
    sizes = {x.size for x in jax.tree.leaves(start.like["model"]["params"])}
    assert collected
    assert {int(np.prod([int(n) for n in shape.split(",")])) for shape in collected} <= sizes


@pytest.mark.parametrize("name", ["adafactor", "muon", "adamw"])
def test_what_optimisers_keep_lies_beside_the_parameters(name: str) -> None:
    config = language_train(mesh="fsdp=4,model=2", optim=OptimConfig(name=name), ema_decay=0.9)
    start, _ = plan_step(language_task(features=256, hidden=1024), config)
    up = (256, 1024)
    for _, x in jax.tree_util.tree_leaves_with_path(start.like):
        if x.shape == up:
            assert x.sharding.spec == P("fsdp", "model")
        elif x.shape == up[::-1]:
            assert x.sharding.spec == P("model", "fsdp")
    shapes = [x.shape for x in jax.tree.leaves(start.like["optimizer"])]
    assert (up in shapes) == (name != "adafactor")


def test_a_dry_run_says_what_each_device_holds(capsys: pytest.CaptureFixture[str]) -> None:
    config = language_train(mesh="data=2,fsdp=2,model=2", dry_run=True)
    assert run(language_task(), config, Path("nowhere"), describe={}) is None
    said = capsys.readouterr().out
    assert "Mesh: data=2, fsdp=2, model=2, seq=1: 8 devices" in said
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in said.splitlines() if line}
    assert lines["ids"] == "[16, 32] int32 [4, 32] on each device: data+fsdp"
    assert lines["decoder.stack.layers.0.feed_forward.up.kernel"] == (
        "[32, 128] float32 [16, 64] on each device: fsdp model"
    )
    assert lines["decoder.stack.layers.0.attention.out.kernel"] == (
        "[8, 4, 32] float32 [4, 4, 16] on each device: model . fsdp"
    )
    whole, one = (float(x) for x in lines["params"].split()[::2])
    assert one < whole / 3.5


WHOLE = RULES.extended(axes=(("heads", None), ("kv_heads", None), ("mlp", None), ("vocab", None)))


class Perceptron(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layer = nnx.Linear(6, 64, use_bias=False, rngs=rngs)


@pytest.mark.parametrize(
    ("changes", "task", "message"),
    [
        ({"mesh": "data=3"}, {}, "multiply to the 8 devices, got 3"),
        ({"mesh": "data=8", "batch_size": 12}, {}, "batch_size must be a multiple of the 8 ways"),
        ({"mesh": "model=8"}, {"num_heads": 4}, r"key\.kernel .*\(kv_heads, 4\) .* model=8"),
        ({"mesh": "data=4,seq=2"}, {"build_model": Perceptron}, "seq=2 splits sequences inside"),
        ({"mesh": "data=4,model=2"}, {"rules": WHOLE}, "model=2 splits no param"),
        ({"mesh": "fsdp=8"}, {"build_model": Perceptron}, r"^layer\.kernel \[6, 64\]: no rule"),
        ({"remat": "full"}, {"build_model": Perceptron}, "this model has none; leave it at none"),
    ],
)
def test_what_does_not_fit(changes: dict, task: dict, message: str) -> None:
    sizes = {name: x for name, x in task.items() if hasattr(MODEL, name)}
    given = {name: x for name, x in task.items() if name not in sizes}
    made = dataclasses.replace(language_task(**sizes), **given)
    with pytest.raises(ValueError, match=message):
        plan_step(made, language_train(**changes))


def test_a_sequence_that_does_not_divide() -> None:
    config: TrainConfig = language_train(mesh="seq=8")
    start, step = plan_step(language_task(), config)
    batch = next(language_task().data.train_batches(batch_size=BATCH, seed=0, start_step=0))
    short = {name: x[:, :30] for name, x in batch.items()}
    with pytest.raises(ValueError, match="T=30 does not divide over the mesh axis 'seq' of size 8"):
        step.lower(start.like, on_device(short, start.layout))
