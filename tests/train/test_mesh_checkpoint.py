"""Checkpoints and runs that move from one mesh to another."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.sharding.laying import mesh_sizes
from tests.train.mesh_task import RULES, STEPS, language_task, language_train
from tests.train.test_checkpoint import same_bits
from tests.train.toy import PlainNet, toy_task
from train.common.checkpoint import Checkpoints
from train.common.config import TrainConfig
from train.common.loop import run
from train.common.mesh import build_mesh
from train.common.metrics import read_history
from train.common.optim import OptimConfig
from train.common.signals import Interrupted
from train.common.state import blueprint
from train.common.task import Batch, Task, TaskData

pytestmark = pytest.mark.mesh


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A checkpoint of a state that lay on eight devices, and the state on the host."""
    run_dir = tmp_path_factory.mktemp("saved")
    state = start_on("fsdp=4,model=2", 8).make()
    checkpoints = Checkpoints(run_dir, keep=1, say=pytest.fail)
    checkpoints.save(7, state, {}, best=None)
    checkpoints.close()
    return run_dir, jax.tree.map(host, state)


def host(x: jax.Array) -> np.ndarray:
    keys = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if keys else x)


def start_on(mesh: str | None, devices: int):
    return blueprint(
        language_task().build_model,
        OptimConfig().build(STEPS),
        seed=3,
        ema=True,
        mesh=None if mesh is None else build_mesh(mesh, jax.devices()[:devices]),
        rules=RULES,
    )


@pytest.mark.parametrize(
    ("mesh", "devices"),
    [("data=2,fsdp=4", 8), ("fsdp=2,model=2", 4), ("model=4", 4), ("fsdp=1", 1), (None, 1)],
)
def test_a_checkpoint_fits_any_mesh(
    mesh: str | None, devices: int, saved: tuple[Path, dict]
) -> None:
    run_dir, wanted = saved
    like = start_on(mesh, devices).like
    checkpoints = Checkpoints(run_dir, keep=1, say=pytest.fail)
    restored = checkpoints.restore(like)
    checkpoints.close()
    assert restored is not None and restored.step == 7
    for x, place in zip(jax.tree.leaves(restored.state), jax.tree.leaves(like), strict=True):
        assert x.sharding.is_equivalent_to(place.sharding, x.ndim)
        assert len(x.sharding.device_set) == devices
    same_bits(jax.tree.map(host, restored.state), wanted)


class Stopping:
    """A task's data, with a signal while batch number `step` is made."""

    def __init__(self, data: TaskData, step: int):
        self._data, self._step = data, step
        self.fingerprint, self.train_size = data.fingerprint, data.train_size
        self.eval_batches = data.eval_batches

    def train_batches(self, *, start_step: int, **options: Any) -> Iterator[Batch]:
        batches = self._data.train_batches(start_step=start_step, **options)
        for step, batch in enumerate(batches, start_step + 1):
            if step == self._step:
                signal.raise_signal(signal.SIGTERM)
            yield batch


def moved(task: Task, config: TrainConfig, run_dir: Path, meshes: dict[int, str | None]):
    """A run that a signal stops at the steps of `meshes`, each part on its mesh."""
    for stop, mesh in meshes.items():
        here = dataclasses.replace(config, mesh=mesh)
        if stop == config.steps:
            return run(task, here, run_dir, describe={})
        stopping = dataclasses.replace(task, data=Stopping(task.data, stop))
        with pytest.raises(Interrupted, match=f"at step {stop} of {config.steps}"):
            run(stopping, here, run_dir, describe={})


@pytest.mark.parametrize(
    ("task", "meshes"),
    [
        (toy_task(build_model=PlainNet), {3: "data=2,fsdp=4", 8: None}),
        pytest.param(
            language_task(),
            {3: "fsdp=4,model=2", 6: None, 8: "data=4,seq=2"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["toy", "language"],
)
def test_a_run_goes_on_on_another_mesh(
    task: Task, meshes: dict[int, str | None], tmp_path: Path
) -> None:
    config = language_train(steps=8, eval_every=8, ema_decay=0.9)
    result = moved(task, config, tmp_path / "moved", meshes)
    calm = moved(task, config, tmp_path / "calm", {8: None})
    found, wanted = (
        [row["loss"] for row in read_history(r.history) if row["kind"] == "train"]
        for r in (result, calm)
    )
    assert len(found) == 8
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    for name, value in calm.final_metrics.items():
        np.testing.assert_allclose(result.final_metrics[name], value, rtol=1e-5)
    assert result.evaluate("validation", "last") == result.final_metrics
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        *(r.params("last") for r in (result, calm)),
    )
    sessions = json.loads((tmp_path / "moved" / "manifest.json").read_text())["sessions"]
    assert [s["mesh"] for s in sessions] == [
        None if mesh is None else mesh_sizes(mesh, 8) for mesh in meshes.values()
    ]
    assert {s["devices"]["count"] for s in sessions} == {8}
