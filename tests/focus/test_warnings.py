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
        ("logit_growth", {"max_logit": 160.0}),
        ("sink", {"sink_mass": 0.99}),
        ("uniform", {"share": 0.999}),
        ("duplicate", {"duplicate": 0.001}),
        ("dead", {"output": 0.001}),
    ],
)
def test_each_kind(what, changed):
    warnings = Warnings(Thresholds(settled=0, pace=1))
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
    assert warnings.state["heads"] == []


def _told(logits, every, thresholds=None):
    """Steps at which growth was warned of, in records of the largest logits of one head."""
    warnings, steps = Warnings(thresholds), range(0, len(logits) * every, every)
    told = [
        x
        for s, logit in zip(steps, logits, strict=True)
        for x in warnings.update(s, _stats(max_logit=logit))
    ]
    return [x.step for x in told if x.what == "logit_growth" and not x.over]


def test_growth_is_warned_of_before_the_logits_are_there():
    # Doubles in 20 steps: from 60 on it gets to 120 within 20 more.
    logits = 4 * 2 ** (np.arange(0, 200, 5) / 20)
    first = int(np.argmax(logits > 60))
    assert logits[first + 1] < 80
    assert _told(logits, 5) == [5 * (first + 1)]
    # So does the same growth in records of every 50 steps, of which the first past 60 is the 100th.
    assert _told(4 * 2 ** (np.arange(0, 200, 50) / 20), 50) == [150]


def test_logits_that_are_high_and_do_not_grow_are_left_alone():
    rising = np.linspace(4, 100, 100)
    assert _told(np.concatenate([rising, np.full(50, 100.0)]), 5) == []
    assert _told(np.full(50, 121.0), 5) == [5]
    falling = np.linspace(119, 4, 20)
    assert _told(falling, 5) == []


def test_growth_of_the_first_steps_is_not_thought_on():
    # Tenfold in 5 steps would be ten thousandfold in 20.
    assert _told([1.1, 11.0, 11.0, 11.0, 11.0, 11.0], 5) == []
    # Nor are ratios to logits of next to nothing.
    assert _told([0.01, 0.01, 0.01, 0.01, 10.0, 10.0, 10.0, 10.0], 5) == []
    assert _told([-3.0, -2.0, -1.0, -1.0, 10.0, 10.0, 10.0, 10.0], 5) == []


def test_logits_that_are_not_finite():
    assert _told([1.0, np.inf, np.inf, np.inf, np.inf, np.inf, np.inf], 5) == [10]
    assert _told([1.0, np.nan, np.nan, np.nan], 5) == []


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


def test_growth_goes_on_from_the_state():
    logits = [4.0, 8.0, 16.0, 32.0, 64.0, 90.0, 100.0]
    expected = _told(logits, 10)
    warnings, steps = Warnings(), []
    for number, logit in enumerate(logits):
        told = warnings.update(10 * number, _stats(max_logit=logit))
        steps += [x.step for x in told]
        warnings = Warnings(state=json.loads(json.dumps(warnings.state)))
    assert steps == expected != []
    assert len(warnings.state["logits"]["layer"]) == 3  # what 20 steps need, and no more


def test_a_module_with_one_head_has_no_neighbours():
    values = {name: np.ones(1) for name in HeadStats._fields}
    stats = HeadStats(**values | {"share": np.array([0.5]), "duplicate": np.array([np.nan])})
    warnings = Warnings(Thresholds(settled=0, records=1, sink=2))
    assert warnings.update(1, {"layer": stats._replace(output=np.zeros(1))}) == []


@pytest.mark.parametrize(
    "bad", [{"collapse": -1}, {"growth": np.inf}, {"records": 0}, {"pace": 0}, {"settled": -1}]
)
def test_thresholds_that_mean_nothing(bad):
    with pytest.raises(ValueError, match=f"Thresholds.{next(iter(bad))}"):
        Thresholds(**bad)
