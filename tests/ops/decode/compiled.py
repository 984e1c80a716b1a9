"""Compiles the decoding kernel for chips that are not there; run in a process of its own.

    python tests/ops/decode/compiled.py v5e:2x2,v6e:2x2 [case ...]

prints, as JSON, for each chip and case why it failed, or null, and the temporaries in bytes.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import attnjax

_WINDOW = attnjax.Causal() & attnjax.Window(1000, 0)
_B, _H, _S = 2, 128, 4096
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "float32": {"dtype": jnp.float32},
    "groups, stats and sinks": {"N": 32, "stats": True, "sinks": jnp.ones(32)},
    "one key head": {"N": 16, "K": 1},
    "two key heads, four queries": {"K": 2, "T": 4},
    "width 64": {"H": 64},
    "width 80, groups, four queries": {"H": 80, "N": 32, "K": 4, "T": 4, "stats": True},
    "width 64, int8, odd ring": {
        "H": 64,
        "cache": jnp.int8,
        "ring": True,
        "S": 1500,
        "mask": _WINDOW,
    },
    "width 64, odd capacity": {"H": 64, "N": 16, "S": 8200, "score_mod": attnjax.alibi(16)},
    "width 64, pages": {"H": 64, "page": 64},
    "width 256": {"H": 256},
    "int8": {"cache": jnp.int8},
    "float8": {"cache": jnp.float8_e4m3fn},
    "pages": {"page": 64, "N": 32},
    "small pages of int8": {"page": 16, "cache": jnp.int8, "stats": True},
    "ring": {"ring": True, "mask": _WINDOW},
    "ring of odd size": {"ring": True, "S": 1500, "mask": _WINDOW},
    "odd capacity": {"S": 4100, "mask": _WINDOW},
    "dense mask": {"mask": jnp.ones((_B, 8, 1, _S), bool)},
    "bias": {"score_mod": attnjax.bias(jnp.ones((8, 1, _S)))},
    "segments": {"mask": attnjax.Causal() & attnjax.Segments(jnp.zeros((_B, _S), jnp.int32))},
    "rule and strides": {
        "mask": attnjax.Where(lambda b, h, q, k: q * 3 + h >= k) & ~attnjax.Strided(7)
    },
    "alibi, relative bias, cap": {
        "score_mod": (
            attnjax.alibi(8),
            attnjax.relative_bias(jnp.ones((8, 33))),
            attnjax.soft_cap(30.0),
        )
    },
    "a captured table": {"score_mod": lambda s, b, h, q, k: s - jnp.arange(8.0)[h] * (q - k)},
}


def case(
    *,
    T: int = 1,
    N: int = 8,
    K: int = 8,
    H: int = _H,
    S: int = _S,
    dtype: Any = jnp.bfloat16,
    cache: Any = None,
    page: int = 0,
    ring: bool = False,
    **options: Any,
) -> tuple[Callable, list]:
    """Returns a decoding call, and the shapes of its arrays."""
    shape = (_B * S // page, page, K, H) if page else (_B, S, K, H)
    arrays = {
        "q": ((_B, T, N, H), dtype),
        "k": (shape, cache or dtype),
        "v": (shape, cache or dtype),
        "length": ((_B,), jnp.int32),
    }
    if cache is not None:
        arrays |= {name: (shape[:3], jnp.float32) for name in ("k_scale", "v_scale")}
    if page:
        arrays["table"] = ((_B, S // page), jnp.int32)

    def call(given: dict[str, jax.Array]) -> Any:
        layout = attnjax.Ring() if ring else attnjax.Contiguous()
        if page:
            layout = attnjax.Paged(given.pop("table"))
        return attnjax.decode(**given, layout=layout, implementation="tpu", **options)

    return call, arrays


def main() -> None:
    found: dict[str, dict[str, Any]] = {}
    chips, *names = sys.argv[1:]
    for chip in chips.split(","):
        found[chip] = {}
        topology = topologies.get_topology_desc(platform="tpu", topology_name=chip)
        mesh = Mesh(np.array(topology.devices[:1]), ("x",), axis_types=(AxisType.Auto,))
        placed = NamedSharding(mesh, PartitionSpec())
        for name in names or CASES:
            call, arrays = case(**CASES[name])
            given = {n: jax.ShapeDtypeStruct(*a, sharding=placed) for n, a in arrays.items()}
            error, temporaries = None, None
            try:
                with (
                    jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
                    attnjax.emulate("tpu", interpret=False),
                ):
                    lowered = jax.jit(call).lower(given)
                temporaries = lowered.compile().memory_analysis().temp_size_in_bytes
            except Exception as reason:
                error = f"{type(reason).__name__}: {reason}"
            found[chip][name] = [error, temporaries]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
