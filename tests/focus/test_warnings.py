"""Warnings begin when a condition has held for long enough, once, and end likewise."""

import json

import numpy as np
import pytest

from attnjax.focus import HeadStats, Thresholds, Warnings


def _stats(**changed):
    healthy = {
        "entropy": 1.0,
        "share": 0.5,
        "keys": 3.0,
        "max_logit": 4.0,
        "logsumexp_sq": 9.0,
        "sink_mass": 0.2,
        "distance": 3.0,
        "output": 1.0,
        "duplicate": 0.5,
    }
    values = {name: np.full(3, value) for name, value in healthy.items()}
    for name, value in changed.items():
        values[name][1] = value
    return {"layer": HeadStats(**values)}


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("entropy_collapse", {"share": 0.01}),
        ("logit_growth", {"max_logit": 80.0}),
        ("sink", {"sink_mass": 0.99}),
        ("uniform", {"share": 0.999}),
        ("duplicate", {"duplicate": 0.001}),
        ("dead", {"output": 0.001}),
    ],
)
def test_each_kind(what, changed):
    warnings = Warnings(Thresholds(settled=0))
    assert warnings.update(1, _stats()) == []
    assert warnings.update(2, _stats(**changed)) == []
    (told,) = warnings.update(3, _stats(**changed))
    assert (told.step, told.module, told.head, told.what, told.over) == (3, "layer", 1, what, False)
    np.testing.assert_equal(told.value, next(iter(changed.values())))
    assert f"{told.threshold:g}" in told.why and "{" not in told.why
    assert warnings.update(4, _stats(**changed)) == []
    assert warnings.update(5, _stats()) == []
    (over,) = warnings.update(6, _stats())
    assert over.over and over.what == what and over.why == ""
    assert warnings.state == []


def test_a_single_record_is_no_warning():
    warnings = Warnings()
    for step in range(0, 20, 2):
        assert warnings.update(step, _stats(share=0.01)) == []
        assert warnings.update(step + 1, _stats()) == []


def test_what_all_new_heads_do_counts_later():
    warnings = Warnings(Thresholds(settled=100, records=1))
    assert warnings.update(99, _stats(share=0.999, duplicate=0.0, output=0.0)) == []
    told = warnings.update(100, _stats(share=0.999, duplicate=0.0, output=0.0))
    assert [x.what for x in told] == ["uniform", "duplicate", "dead"]


def test_it_goes_on_from_its_state():
    first = Warnings()
    first.update(1, _stats(share=0.01))
    second = Warnings(state=json.loads(json.dumps(first.state)))
    assert len(second.update(2, _stats(share=0.01))) == 1
    third = Warnings(state=json.loads(json.dumps(second.state)))
    assert third.update(3, _stats(share=0.01)) == []


def test_a_module_with_one_head_has_no_neighbours():
    values = {name: np.ones(1) for name in HeadStats._fields}
    stats = HeadStats(**values | {"share": np.array([0.5]), "duplicate": np.array([np.nan])})
    warnings = Warnings(Thresholds(settled=0, records=1, sink=2))
    assert warnings.update(1, {"layer": stats._replace(output=np.zeros(1))}) == []


@pytest.mark.parametrize(
    "bad", [{"collapse": -1}, {"growth": np.inf}, {"records": 0}, {"settled": -1}]
)
def test_thresholds_that_mean_nothing(bad):
    with pytest.raises(ValueError, match=f"Thresholds.{next(iter(bad))}"):
        Thresholds(**bad)
