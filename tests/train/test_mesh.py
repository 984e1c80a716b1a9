"""`--mesh`: what it may say, what it means for a number of devices, and what does not fit."""

from __future__ import annotations

import jax
import pytest
from jax.experimental import topologies

from tests.train.toy import Config, toy_train
from train.common.cli import parse
from train.common.mesh import build_mesh, check_batch, mesh_sizes, parse_mesh


def test_sizes() -> None:
    assert mesh_sizes("data=2,model=4", 8) == {"data": 2, "fsdp": 1, "model": 4, "seq": 1}
    assert mesh_sizes(" seq = 2, data=-1 ", 8) == {"data": 4, "fsdp": 1, "model": 1, "seq": 2}
    assert mesh_sizes("fsdp=-1", 1)["fsdp"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"axis=size pairs of data, fsdp, model, seq, such as data=2,model=4; got '' in ''"),
        ("data=2,pipe=2", r"got 'pipe=2' in 'data=2,pipe=2'"),
        ("data=2,data=4", "each axis once, got data twice"),
        ("data=two", "give data a whole number, got 'two'"),
        ("data", "give data a whole number, got ''"),
        ("seq=0", "give seq a size of at least 1, or -1 .* got 0"),
        ("model=-2", "got -2"),
        ("data=-1,seq=-1", "at most one size of -1"),
    ],
)
def test_what_is_no_mesh(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_mesh(text)
    with pytest.raises(ValueError, match=message):
        toy_train(mesh=text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data=2,model=2", "'data=2,model=2' is for 4 devices, jax has 8"),
        ("data=16", "is for 16 devices, jax has 8"),
        ("model=3,data=-1", "sizes multiply to 3, which must divide the number of devices, 8"),
    ],
)
def test_what_does_not_fit_the_devices(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mesh_sizes(text, 8)


def test_the_mesh_has_all_axes() -> None:
    mesh = build_mesh("model=1", jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "model": 1, "seq": 1}


def test_a_mesh_may_split_a_dimension_of_the_network() -> None:
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install libtpu")
    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5p:8x8x8").devices
    mesh = build_mesh("data=2,fsdp=-1,seq=4", chips)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 64, "model": 1, "seq": 4}
    assert len({*mesh.devices.ravel().tolist()}) == 512


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
