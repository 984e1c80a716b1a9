"""`--mesh`: over the devices at hand, and what does not fit."""

from __future__ import annotations

import jax
import pytest

from attnjax.sharding.laying import mesh_sizes
from tests.train.toy import Config, toy_train
from train.common.cli import parse
from train.common.mesh import build_mesh, check_batch


def test_what_is_no_mesh_is_refused_before_any_device_is_asked_for() -> None:
    with pytest.raises(ValueError, match="mesh: expected each axis once, got data twice"):
        toy_train(mesh="data=2,data=4")


def test_the_mesh_has_all_axes() -> None:
    mesh = build_mesh("model=1", jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "model": 1, "seq": 1}


def test_examples_must_divide() -> None:
    sizes = mesh_sizes("data=2,fsdp=4", 8)
    check_batch(sizes, batch_size=32, accumulate=4, eval_batch_size=8)
    with pytest.raises(ValueError, match=r"batch_size .* 8 ways .*data=2 times fsdp=4.* got 12"):
        check_batch(sizes, batch_size=12, accumulate=1, eval_batch_size=8)
    with pytest.raises(ValueError, match="got 32 in 8 parts"):
        check_batch(sizes, batch_size=32, accumulate=8, eval_batch_size=8)
    with pytest.raises(ValueError, match=r"eval_batch_size .* got 12"):
        check_batch(sizes, batch_size=32, accumulate=1, eval_batch_size=12)


def test_the_option() -> None:
    config = parse(Config, ["--run-dir", "x", "--mesh", "data=-1,seq=2"])
    assert config.train.mesh == "data=-1,seq=2"
    assert parse(Config, ["--run-dir", "x"]).train.build_mesh() is None
