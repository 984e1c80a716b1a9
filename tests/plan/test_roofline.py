import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from attnjax.plan import roofline, targets
from attnjax.plan.collectives import Collective


def _mesh(name):
    """A mesh over a target's chips in the order of their coordinates, without a compiler."""
    target = targets.find(name)
    ranges = [range(int(n)) for n in target.shape.split("x")]
    found = [
        SimpleNamespace(coords=coords)
        for coords in itertools.product(*ranges)
        for _ in range(target.device.per_chip)
    ]
    return target, SimpleNamespace(devices=np.array(found, dtype=object))


def _seconds(name, kind, group, sent=10**9):
    target, mesh = _mesh(name)
    found = Collective(kind, (), len(group), 1, sent, False, tuple(group))
    return roofline.seconds(found, mesh, target)


@pytest.mark.parametrize(
    ("name", "kind", "group", "gigabytes"),
    [
        # One dimension of four chips: a line on a 2D slice, closed on a 3D one.
        ("v5e-16", "all-gather", range(4), 50),
        ("v5p-128", "all-gather", range(4), 200),
        ("v5e-256", "all-gather", range(16), 100),
        # A part of a closed dimension has no way around.
        ("v5p-512", "all-gather", range(4), 100),
        # Two and three dimensions have more links.
        ("v5e-256", "reduce-scatter", range(256), 200),
        ("v5p-128", "all-reduce", range(64), 600),
        ("v5p-128", "collective-permute", range(4), 100),
        # Sixteen in a ring exchange all with all: half of it crosses the middle, over four links.
        ("v5e-256", "all-to-all", range(16), 2 * 4 * 50 / 16),
        # Two halves of a chip; and neighbouring chips, whose halves share their links.
        ("tpu7x-8", "all-gather", range(2), 100),
        ("tpu7x-8", "all-gather", range(4), 50),
        ("h100x8", "all-gather", range(8), 450),
    ],
)
def test_bandwidth_of_groups(name, kind, group, gigabytes):
    assert _seconds(name, kind, group) == pytest.approx(1 / gigabytes)


def test_bounds():
    target, mesh = _mesh("v5e-4")
    hidden = Collective("all-gather", ("fsdp",), 2, 1, 10**8, True, (0, 1))
    exposed = Collective("all-reduce", ("fsdp",), 2, 1, 2 * 10**8, False, (0, 1))
    found = roofline.roofline(
        target,
        mesh,
        flops=4 * 197 * 10**9,
        moved=1638 * 10**6,
        collectives=[hidden, exposed],
    )
    assert found.compute == pytest.approx(1e-3)
    assert found.hbm == pytest.approx(2e-3)
    assert (found.network, found.exposed) == pytest.approx((6e-3, 4e-3))
    assert (found.overlapped, found.bound) == (pytest.approx(6e-3), "network")
    assert found.scheduled == pytest.approx(2e-3 + 4e-3)
    assert found.total == pytest.approx(9e-3)
