"""What every test shares: jax on the CPU, hypothesis profiles, and skips that say why."""

import gc
import itertools
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

# Before jax is imported: a test that wants an accelerator is run with JAX_PLATFORMS=cuda or =tpu.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Workers compile for TPUs side by side, and the compiler takes a lock as if it had the device.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import pytest
from hypothesis import HealthCheck, settings

jax.config.update("jax_enable_x64", False)
# Simulated devices, for tests marked `mesh`; TPU interpreters hang beside several.
MESH_DEVICES = 8
jax.config.update("jax_num_cpu_devices", int(os.environ.get("ATTNJAX_TEST_DEVICES", "1")))

# The first example of each shape compiles, so a deadline would only measure the compiler.
settings.register_profile(
    "quick",
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "full", settings.get_profile("quick"), max_examples=500, derandomize=False, print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# Compiled programs pile up, to gigabytes in a process that runs hundreds of tests.
TESTS_PER_CACHE = 40
_finished = itertools.count(1)

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = Path(os.environ.get("ATTNJAX_SHARED_DATA", ROOT.parent / "shared" / "data"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Makes the cases of a test that come after the first `first(n)` slow."""
    seen: Counter[str] = Counter()
    for item in items:
        mark = item.get_closest_marker("first")
        if mark is not None:
            name = item.nodeid.partition("[")[0]
            seen[name] += 1
            if seen[name] > mark.args[0]:
                item.add_marker(pytest.mark.slow)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test marked `gpu`, `tpu` or `mesh` where it cannot run, and says how to run it."""
    backend = jax.default_backend()
    for name, platform in (("gpu", "cuda"), ("tpu", "tpu")):
        if item.get_closest_marker(name) and backend != name:
            pytest.skip(f"needs a {name}, jax runs on the {backend}: set JAX_PLATFORMS={platform}")
    if item.get_closest_marker("mesh") and jax.device_count() < MESH_DEVICES:
        pytest.skip(f"needs {MESH_DEVICES} devices: set ATTNJAX_TEST_DEVICES={MESH_DEVICES}")


def pytest_runtest_teardown() -> None:
    """Forgets compiled programs now and then, so that a worker stays below about two gigabytes."""
    if next(_finished) % TESTS_PER_CACHE == 0:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """Returns a function from a path in the shared data to where it lies; skips if it is absent."""

    def find(relative: str) -> Path:
        path = SHARED_DATA / relative
        if not path.exists():
            pytest.skip(
                f"{relative} is not in {SHARED_DATA}: set ATTNJAX_SHARED_DATA to the folder "
                "of measuring data, which is not part of the project"
            )
        return path

    return find
