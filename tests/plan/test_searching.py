import dataclasses

import pytest

from attnjax.plan import searching, targets
from attnjax.plan.language_training import Training
from attnjax.plan.memory import Memory
from attnjax.plan.planning import Plan, Request
from attnjax.plan.training_run import TrainingRun
from attnjax.sharding.laying import mesh_sizes
from tests.train.toy import toy_train

GIB = 2**30


@pytest.fixture
def planned(monkeypatch):
    """Makes plans without a compiler, by a formula; and the list of those that were made."""
    made = []

    def make(request):
        job, mesh = request.job, request.mesh
        rows = mesh["data"] * mesh["fsdp"]
        if not job.takes(mesh):
            raise ValueError("does not divide")
        kept = {"none": 24, "dots": 12, "full": 3}[job.remat]
        tokens = job.batch * job.sequence / (rows * mesh["seq"] * job.accumulate)
        state = (8 + (4 if job.moments == "float32" else 2)) * 1.3e9 / mesh["fsdp"]
        total = int(state + tokens * kept * 2**14)
        fits = total <= request.target.device.hbm
        memory = Memory({"all": total}, total, compiled=fits)
        plan = Plan(request, "", {}, None, memory, 0, 0, None, None, (), 0.0)
        made.append(plan)
        return plan

    monkeypatch.setattr(searching, "make_plan", make)
    return make, made


def _request(target="v5e-16", mesh="fsdp=16", **training):
    found = targets.find(target)
    job = Training("lm-1.3b", **{"batch": 64, "sequence": 4096, **training})
    return Request(found, mesh_sizes(mesh, found.devices), job)


@pytest.mark.parametrize("batch", [16, 64, 4096])
@pytest.mark.parametrize("axis", ["batch", "sequence"])
def test_largest_lies_between_two_that_were_compiled(planned, axis, batch):
    make, made = planned
    start = make(_request(batch=batch))
    found = searching.largest(start, axis, compiles=12, say=lambda text: None)
    step = start.request.job.granule(axis, start.request.mesh)
    by_size = {p.request.job.size(axis): p.fits for p in made}
    assert set(found.tried) == set(by_size) and len(made) == len(found.tried) <= 13
    assert by_size[found.too_large] is False and found.too_large % step == 0
    if found.fits is None:
        assert found.too_large == step
    else:
        assert by_size[found.fits] is True
        assert found.too_large - found.fits == step


def test_a_search_stops_at_its_bound(planned):
    make, made = planned
    searching.largest(make(_request(batch=16)), "batch", compiles=2, say=lambda text: None)
    assert len(made) == 3


def test_fixes_are_only_what_was_compiled_and_fits(planned):
    make, made = planned
    start = make(_request(remat="none", batch=512))
    assert not start.fits
    said = []
    changes, tried = searching.fixes(start, say=said.append)
    assert len(changes) == 3 and tried == len(made) - 1
    for change in changes:
        assert change.plan in made and change.plan.fits
        assert f"trying {change.text}" in said
    assert [c.text.split()[0] for c in changes] == ["--remat", "--accumulate", "--target"]
    # The first remat policy was tried and is not named, for it does not fit.
    assert "trying --remat dots" in said
    assert changes[0].text == "--remat full"


def test_changes_are_put_together_where_none_is_enough(planned):
    make, made = planned
    start = make(_request("v5e-256", "fsdp=256", batch=2048, sequence=2**18, remat="none"))
    changes, _ = searching.fixes(start, compiles=40, say=lambda text: None)
    assert changes[0].text == "--remat full --accumulate 8"
    # And not where one is.
    made.clear()
    enough = make(_request(remat="none", batch=512))
    changes, _ = searching.fixes(enough, wanted=9, compiles=40, say=lambda text: None)
    assert "--remat full" in [c.text for c in changes]
    assert not [p for p in made if p.request.job.remat == "full" and p.request.job.accumulate > 1]


def test_fixes_say_when_there_is_none(planned):
    make, _ = planned
    start = make(_request("v5e-256", "fsdp=256", batch=256, sequence=2**24, remat="full"))
    changes, tried = searching.fixes(start, compiles=3, say=lambda text: None)
    assert (changes, tried) == ([], 3)


def test_what_a_mesh_cannot_take_is_not_counted(planned):
    make, _ = planned
    said = []
    start = make(_request("v5e-4", "data=4", remat="full", batch=4, sequence=8192))
    changes, _ = searching.fixes(start, say=said.append)
    assert changes and all(c.plan.request.job.takes(c.plan.request.mesh) for c in changes)


def test_candidates_keep_what_they_do_not_name():
    request = _request(remat="none", batch=128, mesh="data=4,fsdp=4")
    kinds = set()
    for kind, text, other in searching.candidates(request):
        kinds.add(kind)
        assert text.startswith("--")
        if kind in ("batch", "sequence"):
            continue
        assert (other.job.batch, other.job.sequence) == (128, 4096)
        assert other.target.devices >= request.target.devices
        if kind.startswith("mesh"):
            assert dataclasses.replace(other, mesh=request.mesh) == request
    assert kinds == {
        *("remat", "accumulate", "moments", "mesh fsdp", "mesh seq", "mesh model"),
        *("target", "together", "batch", "sequence"),
    }


def test_a_training_run_is_changed_by_its_own_options():
    run = TrainingRun("train.toy", (), None, toy_train(batch_size=64))
    request = Request(targets.find("v5e-4"), mesh_sizes("fsdp=4", 4), run)
    found = [(kind, text) for kind, text, _ in searching.candidates(request)]
    assert [text for kind, text in found if kind in ("remat", "accumulate")] == [
        *("--train.remat dots", "--train.remat full"),
        *(f"--train.accumulate {parts}" for parts in (2, 4, 8, 16)),
    ]
    # How long sequences are is for the data to say, so they stay.
    assert [text for kind, text in found if kind in ("batch", "sequence")] == [
        f"--train.batch-size {size}" for size in (32, 16, 8, 4)
    ]
