"""manifest.json: what a run was made from, enough to make it again or to see why one cannot."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

PACKAGES = (
    "attnjax",
    "flax",
    "grain",
    "jax",
    "jaxlib",
    "libtpu",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "tokenizers",
)
SAME_BITS = ("python", "packages", "devices", "processor", "environment", "git")
"""The entries of `surroundings` that the bits of a result may depend on."""


def surroundings() -> dict[str, Any]:
    """Versions, devices, environment and code of this process."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": _devices(),
        "processor": _processor(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("JAX_", "XLA_", "LIBTPU_INIT_ARGS"))
        },
        "git": _git(),
    }


def new_manifest(*, seed: int, data_fingerprint: str, config_sha256: str) -> dict[str, Any]:
    """The manifest of a run that begins now; sessions are added by `add_session`."""
    return {
        **surroundings(),
        "seed": seed,
        "data_fingerprint": data_fingerprint,
        "config_sha256": config_sha256,
        "sessions": [],
    }


def add_session(
    manifest: dict[str, Any], *, resumed_step: int | None, mesh: Mapping[str, int] | None
) -> dict[str, Any]:
    """`manifest` with this process as one more session.

    Args:
        manifest: what stands in the file so far.
        resumed_step: the step it goes on from; None for a beginning.
        mesh: the size of each axis of its mesh; None without one.
    """
    session = {
        "command": [sys.executable, *sys.orig_argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "resumed_step": resumed_step,
        "mesh": None if mesh is None else dict(mesh),
        "devices": _devices(),
        "git": _git(),
    }
    return {**manifest, "sessions": [*manifest["sessions"], session]}


def changed_surroundings(manifest: dict[str, Any]) -> list[str]:
    """What differs now from when the run began and may change its bits, as `name: old -> new`."""
    old, new = flatten({k: manifest.get(k) for k in SAME_BITS}), flatten(surroundings())
    return [
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in sorted(old.keys() | {k for k in new if k.split(".")[0] in SAME_BITS})
        if old.get(name) != new.get(name)
    ]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names; lists and scalars are values."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{name}" if prefix else str(name))
    return flat


def _devices() -> dict[str, Any]:
    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
        "processes": jax.process_count(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The CPU's name: XLA picks instructions by it, so the bits on a CPU follow from it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # no such file outside Linux; the platform's own name serves there
    return platform.processor() or platform.machine()


def _git() -> dict[str, Any] | None:
    """Commit of the code and whether it was changed since; None outside a git checkout."""

    def run(*arguments: str) -> str:
        here = Path(__file__).parent
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        commit = run("rev-parse", "HEAD")
        return {"commit": commit, "modified": bool(run("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
