import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType

from attnjax import Partition
from attnjax.sharding.laying import lay_mesh, mesh_sizes, parse_mesh, partition_on


@pytest.mark.parametrize(
    ("text", "devices", "sizes"),
    [
        ("data=2,model=4", 8, (2, 1, 4, 1)),
        (" seq = 2, data=-1 ", 8, (4, 1, 1, 2)),
        ("fsdp=-1", 1, (1, 1, 1, 1)),
        ("data=1, fsdp=2, model=4, seq=2", 16, (1, 2, 4, 2)),
    ],
)
def test_sizes(text, devices, sizes):
    found = mesh_sizes(text, devices)
    assert tuple(found.items()) == (*zip(("data", "fsdp", "model", "seq"), sizes, strict=True),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"axis=size pairs of data, fsdp, model, seq, such as data=2,model=4; got '' in ''"),
        ("data=2,pipe=2", r"got 'pipe=2' in 'data=2,pipe=2'"),
        ("data=2,data=4", "each axis once, got data twice"),
        ("data=two", "a size of at least 1 for data, or -1 .* got 'two'"),
        ("data", "a size of at least 1 for data, or -1 .* got ''"),
        ("seq=0", "a size of at least 1 for seq, or -1 .* got '0'"),
        ("model=-2", "got '-2'"),
        ("data=-1,seq=-1", "at most one size of -1"),
    ],
)
def test_what_is_no_mesh(text, message):
    with pytest.raises(ValueError, match=f"mesh: expected .*{message}"):
        parse_mesh(text)


@pytest.mark.parametrize(
    ("text", "product"), [("data=2,model=2", 4), ("data=16", 16), ("model=3,data=-1", 3)]
)
def test_what_does_not_fit_the_devices(text, product):
    with pytest.raises(ValueError, match=f"multiply to the 8 devices, got {product} of '{text}'"):
        mesh_sizes(text, 8)


def test_attention_is_spread_over_the_axes_that_split_something():
    assert partition_on(parse_mesh("data=2,model=4"), "ring") == Partition(("data",), "model")
    every = Partition(("data", "fsdp"), "model", "seq", "ulysses")
    assert partition_on(parse_mesh("data=2,fsdp=2,model=2,seq=2"), "ulysses") == every
    assert partition_on(parse_mesh("data=1"), "ring") == Partition()


def _devices(name):
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install libtpu")
    return [*topologies.get_topology_desc(platform="tpu", topology_name=name).devices]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("v5p:4x8x8", {"data": 1, "fsdp": 64, "model": 1, "seq": 4}),
        # No dimension is 4 long: one has to be split.
        ("v5p:8x8x8", {"data": 2, "fsdp": 64, "model": 1, "seq": 4}),
    ],
)
def test_neighbours_lie_along_one_dimension(name, sizes):
    devices = _devices(name)
    mesh = lay_mesh(sizes, devices)
    assert dict(mesh.shape) == sizes and set(mesh.axis_types) == {AxisType.Auto}
    assert {*mesh.devices.ravel().tolist()} == {*devices}
    line = np.array([device.coords for device in mesh.devices[0, 0, 0]])
    assert sum(len({*places.tolist()}) > 1 for places in line.T) == 1


def test_the_devices_at_hand_are_the_default():
    assert dict(lay_mesh({"data": jax.device_count()}).shape) == {"data": jax.device_count()}
