import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType

from attnjax.sharding.laying import lay_mesh


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
