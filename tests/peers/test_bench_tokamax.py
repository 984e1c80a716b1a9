"""Tokamax takes part in benchmarks, whatever the command line holds."""

import sys

import numpy as np
import pytest

from attnjax.bench import cases
from attnjax.bench.contestants import roster

pytest.importorskip("tokamax", reason="needs the extra peers: make test-all")


@pytest.mark.parametrize("name", cases.NAMES)
def test_tokamax_does_every_case(name, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench", "cpu", "--length", "64"])
    (contestant,) = [x for x in roster() if x.name == "tokamax"]
    work = cases.make(name, cases.Shape(2, 64, 2, 16, "float32"))
    found = contestant.prepare(work, "fwdbwd").results()
    for part, right in cases.reference(work, "fwdbwd").items():
        np.testing.assert_allclose(found[part], right, atol=1e-4, err_msg=part)
