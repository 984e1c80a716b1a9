"""The rules of the study on curves that are made up."""

import numpy as np
import pytest

from attnjax.bench.focus.judging import Foretold, Rule, final, rule, saved, shown, warned
from attnjax.bench.focus.runs import Runs
from attnjax.focus import HeadStats, Thresholds

P, EVERY = 200, 5
STEPS = np.arange(P)
FALLING = 2 + 2 * np.exp(-STEPS / 20)


def spike(recovers):
    """A loss that jumps by 3 at step 100, and halves that every 10 steps, or not."""
    after = 3 * 0.5 ** ((STEPS - 100) / 10) if recovers else 3
    return FALLING + np.where(STEPS >= 100, after, 0)


def not_finite():
    return np.where(STEPS == 150, np.nan, FALLING)


CURVES = {
    "fine": (FALLING, False),
    "a bit worse": (1.09 * FALLING, False),
    "spike that recovers": (spike(True), False),
    "spike that does not": (spike(False), True),
    "stalls": (np.maximum(FALLING, 2.5), True),
    "not finite for once": (not_finite(), True),
}


def runs_of(losses, logits=None, rates=None):
    """Runs of one module with two heads, whose second has these largest logits `[R, P / every]`."""
    losses = np.stack(losses)
    ones = np.ones((len(losses), P // EVERY, 2))
    stats = HeadStats(*(0.5 * ones for _ in HeadStats._fields))
    if logits is not None:
        stats = stats._replace(max_logit=np.stack([0 * ones[..., 0], logits], axis=-1))
    rates = np.full(len(losses), 0.1) if rates is None else np.asarray(rates)
    return Runs(rates, np.arange(len(losses)), losses, EVERY, {"layer": stats}, None)


@pytest.mark.parametrize("name", CURVES)
def test_what_is_broken(name):
    curve, verdict = CURVES[name]
    assert rule(runs_of([FALLING])).broken(curve[None]).tolist() == [verdict]


def test_what_healthy_runs_reach_is_of_the_best_rate():
    losses = [FALLING, 1.1 * FALLING, 1.2 * FALLING, not_finite(), 0.5 * FALLING, not_finite()]
    ends = final(np.stack(losses))
    np.testing.assert_array_equal(np.isinf(ends), [False, False, False, True, False, True])
    found = rule(runs_of(losses, rates=[0.1] * 3 + [0.3] * 3))
    np.testing.assert_allclose(found.reached, 1.1 * FALLING[-20:].mean())
    np.testing.assert_allclose(found.limit, 1.1 * found.reached)


def test_rates_that_are_too_low_to_learn_do_not_break_runs():
    # The best rate is 0.2; of what ends above the limit, only what is at higher rates is broken.
    losses = [2 * FALLING, not_finite(), 0.5 * FALLING, 2 * FALLING, 2 * FALLING, FALLING]
    judged = rule(runs_of(losses, rates=[0.1, 0.1, 0.2, 0.2, 0.3, 0.3]))
    assert judged.slow.tolist() == [True, False, False, True, False, False]
    assert judged.broken(np.stack(losses)).tolist() == [False, True, False, False, True, False]
    # Treated, a slow run is not broken, and one that was fine can be, at whatever rate.
    treated = [2 * FALLING, FALLING, 2 * FALLING, not_finite(), FALLING, FALLING]
    assert judged.broken(np.stack(treated)).tolist() == [False, False, True, True, False, False]


def test_losses_near_0_are_told_apart_in_nats():
    solved = runs_of([0.001 + 0 * FALLING])
    twice, worse = 0.002 + 0 * FALLING, 0.06 + 0 * FALLING
    assert rule(solved).broken(np.stack([twice, worse])).tolist() == [True, True]
    judged = rule(solved, floor=0.05)
    np.testing.assert_allclose(judged.limit, 0.051)
    assert judged.broken(np.stack([twice, worse])).tolist() == [False, True]
    assert shown(twice, solved.loss) == 19 and shown(twice, solved.loss, floor=0.05) is None
    assert shown(worse, solved.loss, floor=0.05) == 19


def test_when_the_loss_shows_it():
    healthy = np.stack([0.99 * FALLING, FALLING, 1.01 * FALLING])
    assert shown(FALLING, healthy) is None
    # The mean over 20 steps has risen by a tenth when two of them are 3 higher: 0.3 of 2.
    assert shown(spike(False), healthy) == 101
    assert shown(not_finite(), healthy) == 150
    stalled = np.maximum(FALLING, 2.5)
    step = shown(stalled, healthy)
    means = [stalled[step - 19 + x : step + 1 + x].mean() for x in (-1, 0)]
    usual = [FALLING[step - 19 + x : step + 1 + x].mean() for x in (-1, 0)]
    assert means[0] <= 1.1 * usual[0] and means[1] > 1.1 * usual[1]


def test_how_far_ahead_warnings_come():
    records = np.arange(P // EVERY)
    growing, late, brief = (
        np.where(condition, 60.0, 1.0) for condition in (records >= 4, records >= 25, records == 9)
    )
    losses = [FALLING, FALLING, spike(False), spike(False), spike(False), not_finite()]
    logits = np.stack([0 * growing, growing, growing, late, brief, np.full(P // EVERY, np.nan)])
    judged = Rule(1.0, 2.3, np.zeros(6, bool))
    told = warned(runs_of(losses, logits), judged, Thresholds(growth=50))
    assert told == [
        Foretold(None, None, None),
        Foretold(25, "logit_growth", None),  # a false alarm, at the second record in a row
        Foretold(25, "logit_growth", 101),
        Foretold(130, "logit_growth", 101),
        Foretold(None, None, 101),
        Foretold(None, None, 150),
    ]
    assert [x.lead for x in told] == [None, None, 76, -29, None, None]


def test_broken_runs_show_it_at_their_end_at_the_latest():
    # 1.05 times the loss of other healthy runs is fine at each step, and too much at the end.
    curve = np.where(STEPS < P - 20, 1.05, 1.095) * FALLING
    reached = 0.99 * final(FALLING[None])[0]
    judged = Rule(reached, 1.1 * reached, np.zeros(3, bool))
    told = warned(runs_of([FALLING, FALLING, curve]), judged)
    assert told[2] == Foretold(None, None, P - 1)


def test_what_a_treatment_saves():
    bad = 2 * FALLING
    untreated = runs_of([FALLING, FALLING, FALLING, bad, bad], rates=[0.1] * 3 + [0.3] * 2)
    treated = runs_of([1.02 * FALLING, 1.04 * FALLING, bad, FALLING, not_finite()])
    judged = rule(untreated)
    found = saved(untreated, treated, judged)
    np.testing.assert_allclose(found.pop("worse"), 0.03)
    np.testing.assert_allclose(found.pop("worse_nats"), 0.03 * FALLING[-20:].mean())
    assert found == {"broken": 2, "rescued": 1, "harmed": 1}
    assert saved(untreated, runs_of([bad] * 5), judged)["worse"] is None
