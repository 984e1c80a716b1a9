import importlib.util

import pytest

from attnjax.plan import targets


@pytest.mark.parametrize(
    ("name", "chips", "devices", "hosts", "shape"),
    [
        ("v5e-16", 16, 16, 4, "4x4"),
        ("v6e-256", 256, 256, 64, "16x16"),
        # These two count TensorCores, of which a chip has two; only tpu7x shows both as devices.
        ("v5p-512", 256, 256, 64, "4x8x8"),
        ("v5p-8192", 4096, 4096, 1024, "16x16x16"),
        ("tpu7x-128", 64, 128, 16, "4x4x4"),
        ("h100x8", 8, 8, 1, "8"),
    ],
)
def test_names_count_what_google_counts(name, chips, devices, hosts, shape):
    target = targets.find(name)
    assert (target.chips, target.devices, target.hosts) == (chips, devices, hosts)
    assert target.shape == shape
    assert name in target.describe() and f"{chips} chips" in target.describe()


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("v5p-500", "v5p-256, v5p-512, v5p-1024. v5p counts TensorCores"),
        ("v5e16", "v5e-16"),
        ("h100", "h100x8"),
        ("v5e-512", "v5e-64, v5e-128, v5e-256"),
    ],
)
def test_unknown_names_are_told_what_is_near(name, near):
    with pytest.raises(ValueError, match=f"there is no '{name}'") as caught:
        targets.find(name)
    assert near in str(caught.value)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    targets._devices.cache_clear()
    with pytest.raises(RuntimeError, match="pip install libtpu"):
        targets.find("v5e-16").topology_devices()
    with pytest.raises(RuntimeError, match=r"jax-cuda13-plugin==.* nvidia-cuda-nvcc"):
        targets.find("h100x8").topology_devices()


@pytest.mark.parametrize("name", ["v5e-16", "v6e-4", "v5p-512", "tpu7x-16"])
def test_the_compiler_knows_the_devices(name):
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install libtpu")
    target = targets.find(name)
    devices = target.topology_devices()
    assert len(devices) == target.devices
    assert len({tuple(x.coords) for x in devices}) == target.chips
    sizes = [1 + max(x.coords[n] for x in devices) for n in range(target.device.torus)]
    assert "x".join(map(str, sizes)) == target.shape
