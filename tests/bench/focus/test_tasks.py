"""The tasks of the study ask what they say."""

import jax
import numpy as np
import pytest

from attnjax.bench.focus.tasks import TASKS, recall
from attnjax.bench.focus.treatments import TREATMENTS


def test_what_is_to_be_recalled_has_been_shown():
    keys, values, answers = (
        np.asarray(x) for x in recall(keys=6, times=3, asked=4).batch(jax.random.key(0))
    )
    assert keys.shape == values.shape == (8, 22) and answers.shape == (8, 4)
    for key, value, answer in zip(keys, values, answers, strict=True):
        assert np.bincount(key[:18]).tolist() == [3] * 6
        pairs = dict(zip(key[:18].tolist(), value[:18].tolist(), strict=True))
        assert [pairs[x] for x in key[:18]] == value[:18].tolist()  # always the same value
        assert [pairs[x] for x in key[18:]] == answer.tolist()
        assert (value[18:] == 6).all()  # which is no value
    assert len({tuple(x) for x in values[:, :18].tolist()}) == 8


@pytest.mark.parametrize("name", TASKS)
def test_tasks_can_be_judged(name):
    pytest.importorskip("sklearn") if name == "digits" else None
    task = TASKS[name]()
    assert len(task.rates) >= 6 and list(task.rates) == sorted(task.rates)
    assert task.warm_up < task.steps and task.steps % 5 == 0
    assert set(task.treatments or ()) <= set(TREATMENTS)
    batch = task.batch(jax.random.key(0))
    for one, other in zip(
        jax.tree.leaves(batch), jax.tree.leaves(task.batch(jax.random.key(1))), strict=True
    ):
        assert one.shape == other.shape and (np.asarray(one) != np.asarray(other)).any()
