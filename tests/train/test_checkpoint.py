"""Checkpoints: what is saved comes back bit for bit; anything else is noticed before it is used."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.common.checkpoint import SAVING, Checkpoints
from train.common.fingerprint import fingerprint
from train.common.seal import SEAL, BrokenCheckpointError, read_seal, write_seal


def make_state(seed: int = 0) -> dict:
    """Arrays of every kind that a training state holds."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(5, 7)).astype(np.float32)
    return {
        "model": {
            "params": {"layers": {0: {"kernel": jnp.asarray(normal)}, 1: {"bias": jnp.ones(3)}}},
            "rest": {"mean": jnp.asarray(normal[0], jnp.bfloat16)},
            "rng": {"key": jax.random.key(seed), "keys": jax.random.split(jax.random.key(1), 3)},
            "ema": {},
        },
        "optimizer": {
            "opt_state": (jnp.asarray(rng.integers(9, size=4)), {"mask": jnp.array([True, False])}),
            "step": jnp.int32(seed),
        },
    }


def same_bits(left: dict, right: dict) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def fill(run_dir: Path, steps: list[int], *, keep: int = 9, best: int | None = None) -> list[str]:
    """Saves the state of seed s as step s, for each step."""
    said: list[str] = []
    checkpoints = Checkpoints(run_dir, keep=keep, say=said.append)
    for step in steps:
        checkpoints.save(step, make_state(step), {"note": step}, best=best)
    checkpoints.close()
    return said


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with checkpoints of steps 10 and 20, to be copied, not changed."""
    run_dir = tmp_path_factory.mktemp("pristine")
    fill(run_dir, [10, 20])
    return run_dir


@pytest.fixture
def run_dir(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "run"))


def newest_files(run_dir: Path) -> list[Path]:
    return sorted(p for p in (run_dir / "checkpoints" / "00000020").rglob("*") if p.is_file())


def restore(run_dir: Path) -> tuple[object, list[str]]:
    said: list[str] = []
    checkpoints = Checkpoints(run_dir, keep=9, say=said.append)
    restored = checkpoints.restore(make_state())
    checkpoints.close()
    return restored, said


def assert_walked_back(run_dir: Path, reason: str) -> None:
    restored, said = restore(run_dir)
    assert restored.step == 10
    assert restored.host == {"note": 10}
    same_bits(restored.state, make_state(10))
    assert "the checkpoint of step 20 is broken and not used" in said[0]
    assert reason in said[0]
    assert "continuing from the one before, of step 10" in said[1]
    assert [p.name for p in (run_dir / "broken").iterdir()] == ["00000020-0"]
    assert [p.name for p in (run_dir / "checkpoints").iterdir()] == ["00000010"]


def test_what_is_saved_comes_back(run_dir: Path) -> None:
    restored, said = restore(run_dir)
    assert (restored.step, restored.host, said) == (20, {"note": 20}, [])
    same_bits(restored.state, make_state(20))


def test_a_relative_directory_and_a_part_of_the_state(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_dir.parent)
    checkpoints = Checkpoints(Path("run"), keep=1, say=pytest.fail)
    loaded = checkpoints.load(10, {"model": make_state()["model"]})
    assert loaded.state.keys() == {"model"}
    same_bits(loaded.state["model"], make_state(10)["model"])


def test_the_state_may_be_donated_while_it_is_written(tmp_path: Path) -> None:
    size = 1 << 20
    step = jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, keep=9, say=pytest.fail)
    state = {"model": {"w": jnp.zeros(size)}, "optimizer": {"step": jnp.int32(0)}}
    for number in range(4):
        checkpoints.save(number, state, {}, best=None)
        state = step(step(state))
    for number in range(4):
        loaded = checkpoints.load(number, state).state
        np.testing.assert_array_equal(loaded["model"]["w"], np.full(size, 2 * number, np.float32))
    checkpoints.close()


def test_host_state_is_taken_when_the_save_starts(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=9, say=pytest.fail)
    host = {"sums": {"loss": 1.0}}
    checkpoints.save(1, make_state(), host, best=None)
    host["sums"]["loss"] = 2.0
    assert checkpoints.load(1, make_state()).host == {"sums": {"loss": 1.0}}
    checkpoints.close()


@pytest.mark.parametrize(
    ("best", "left"), [(None, [40, 50]), (20, [20, 40, 50]), (50, [40, 50]), (7, [40, 50])]
)
def test_the_latest_and_the_best_stay(tmp_path: Path, best: int | None, left: list[int]) -> None:
    fill(tmp_path, [10, 20, 30, 40, 50], keep=2, best=best)
    assert Checkpoints(tmp_path, keep=2, say=pytest.fail).steps == left


def test_a_step_saved_again_replaces_the_first(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=9, say=pytest.fail)
    checkpoints.save(1, make_state(3), {"evaluated": False}, best=None)
    checkpoints.save(1, make_state(4), {"evaluated": True}, best=None)
    loaded = checkpoints.load(1, make_state())
    assert loaded.host == {"evaluated": True}
    same_bits(loaded.state, make_state(4))
    checkpoints.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["00000001"]


def test_ten_flipped_bits(pristine: Path, tmp_path: Path) -> None:
    """One bit at a time, anywhere in the newest checkpoint, its seal included."""
    rng = random.Random(0)
    for trial in range(10):
        run_dir = Path(shutil.copytree(pristine, tmp_path / str(trial)))
        files = [path for path in newest_files(run_dir) if path.stat().st_size]
        path = rng.choice(files)
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        assert_walked_back(run_dir, SEAL if path.name == SEAL else "was changed")


def test_each_file_truncated_or_removed_or_one_added(pristine: Path, tmp_path: Path) -> None:
    count = len(newest_files(pristine))
    assert count > 10
    for index in range(count):
        for damage in ("truncate", "remove"):
            run_dir = Path(shutil.copytree(pristine, tmp_path / f"{damage}{index}"))
            path = newest_files(run_dir)[index]
            size = path.stat().st_size
            if damage == "remove":
                path.unlink()
            elif size:
                os.truncate(path, size // 2)
            else:
                continue  # an empty file has no shorter version
            name = path.name if path.name == SEAL or damage == "remove" else "was changed"
            assert_walked_back(run_dir, name)
    run_dir = Path(shutil.copytree(pristine, tmp_path / "added"))
    (run_dir / "checkpoints" / "00000020" / "state" / "more").write_text("x")
    assert_walked_back(run_dir, "state/more was added")


def test_a_whole_file_of_another_checkpoint(run_dir: Path) -> None:
    """Every file is sound, but the array data belongs to another step."""
    new, old = (run_dir / "checkpoints" / name / "state" for name in ("00000020", "00000010"))
    shutil.rmtree(new)
    shutil.copytree(old, new)
    assert_walked_back(run_dir, "is broken")


def test_a_sealed_checkpoint_under_another_step(run_dir: Path) -> None:
    directory = run_dir / "checkpoints"
    shutil.rmtree(directory / "00000020")
    shutil.copytree(directory / "00000010", directory / "00000020")
    assert_walked_back(run_dir, "it was saved as step 10")


def test_arrays_are_compared_after_loading_too(run_dir: Path) -> None:
    """Orbax itself returning something else than it was given is caught by the fingerprint."""
    path = run_dir / "checkpoints" / "00000020"
    content = read_seal(path)
    name = "['model']['params']['layers'][0]['kernel']"
    content["fingerprint"][name] ^= 1
    (path / SEAL).unlink()
    write_seal(path, content)
    assert_walked_back(run_dir, f"{name} does not hold what was saved")


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (jnp.zeros((5, 8)), r"kernel.* was saved as float32\[5, 7\].* have float32\[5, 8\]"),
        (jnp.zeros((5, 7), jnp.bfloat16), r"float32\[5, 7\].* have bfloat16\[5, 7\]"),
        ({}, r"float32\[5, 7\].* have nothing"),
        ([jnp.zeros((5, 7))] * 2, r"float32\[5, 7\].* have nothing"),
    ],
)
def test_other_models_are_refused(run_dir: Path, kernel: object, message: str) -> None:
    like = make_state()
    like["model"]["params"]["layers"][0]["kernel"] = kernel
    with pytest.raises(BrokenCheckpointError, match=message):
        Checkpoints(run_dir, keep=1, say=pytest.fail).load(20, like)


def test_when_none_can_be_read_nothing_is_moved(run_dir: Path) -> None:
    for step in ("00000010", "00000020"):
        (run_dir / "checkpoints" / step / SEAL).unlink()
    with pytest.raises(BrokenCheckpointError, match=r"none of the 2 .*step 20: .*step 10: .*seal"):
        restore(run_dir)
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == ["00000010", "00000020"]
    assert not (run_dir / "broken").exists()


def test_broken_ones_of_the_same_step_are_all_kept(run_dir: Path) -> None:
    for trial in range(2):
        (run_dir / "checkpoints" / "00000020" / SEAL).unlink()
        restore(run_dir)
        fill(run_dir, [20])
        assert (run_dir / "broken" / f"00000020-{trial}").is_dir()


def test_a_save_that_was_cut_off_is_not_seen(run_dir: Path) -> None:
    directory = run_dir / "checkpoints"
    (directory / "00000020" / SEAL).unlink()
    (directory / "00000020").rename(directory / f"{SAVING}00000020")
    said: list[str] = []
    checkpoints = Checkpoints(run_dir, keep=9, say=said.append)
    checkpoints.clean()
    assert checkpoints.restore(make_state()).step == 10
    assert [s for s in said if "removed saving-00000020" in s] == said
    assert [p.name for p in directory.iterdir()] == ["00000010"]


def test_no_checkpoints_at_all(tmp_path: Path) -> None:
    assert restore(tmp_path) == (None, [])


def test_a_failed_save_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("No space left on device")

    checkpoints = Checkpoints(tmp_path, keep=1, say=pytest.fail)
    monkeypatch.setattr("train.common.checkpoint.write_seal", fail)
    checkpoints.save(1, make_state(), {}, best=None)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.close()
    assert checkpoints.steps == []


def weighted(words: np.ndarray) -> int:
    """The fingerprint's definition, in Python integers."""
    words = words.reshape(-1)
    return sum((int(w) + 1) * (2 * (words.size + i) + 1) for i, w in enumerate(words)) % 2**32


def test_fingerprint_is_what_it_says() -> None:
    rng = np.random.default_rng(0)
    floats = rng.normal(size=(3, 4, 5)).astype(np.float32)
    half = np.asarray(jnp.asarray(floats, jnp.bfloat16))
    small = rng.integers(-128, 127, size=11).astype(np.int8)
    tree = {"a": floats, "b": half, "c": small, "d": small > 0, "e": jnp.float32(2.0), "f": ()}
    assert fingerprint(tree) == {
        "['a']": weighted(floats.view(np.uint32)),
        "['b']": weighted(half.view(np.uint16)),
        "['c']": weighted(small.view(np.uint8)),
        "['d']": weighted(small > 0),
        "['e']": weighted(np.float32([2.0]).view(np.uint32)),
    }


def test_fingerprint_sees_every_bit() -> None:
    x = np.arange(1, 65, dtype=np.float32)
    original = fingerprint({"x": x})
    for index in range(x.size):
        changed = x.copy()
        changed.view(np.uint32)[index] ^= np.uint32(1 << (index % 32))
        assert fingerprint({"x": changed}) != original
    assert fingerprint({"x": x[::-1].copy()}) != original
    assert fingerprint({"x": np.zeros(3)}) != fingerprint({"x": np.zeros(4)})


def test_fingerprint_of_keys_tells_them_apart() -> None:
    one, two = (fingerprint({"k": jax.random.key(seed)}) for seed in (1, 2))
    assert one != two
