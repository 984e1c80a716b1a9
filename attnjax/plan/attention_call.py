"""One attention call, forward and backward, as something to plan."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

import attnjax
from attnjax.masks import Mask
from attnjax.plan.workload import Change, Workload, attention_flops
from attnjax.sharding.laying import BATCH_AXES, partition_on
from attnjax.sharding.partition import Method

_MASKS: dict[str, tuple[Callable[..., Mask], int, int]] = {
    "full": (attnjax.Full, 0, 0),
    "causal": (attnjax.Causal, 0, 1),
    "window": (attnjax.Window, 2, 2),
    "prefix": (attnjax.Prefix, 1, 1),
    "strided": (attnjax.Strided, 1, 1),
}


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """The shapes of a call; queries and keys are of one sequence.

    Attributes:
      batch, sequence, heads, kv_heads, width: B, T = S, N, K and H = D.
      mask: as `parse_mask` takes it.
      dtype: of the arrays.
      method: how the sequence is sharded, as in `attnjax.Partition`.
      backward: whether the gradients of q, k and v are computed, too.
    """

    batch: int
    sequence: int
    heads: int
    kv_heads: int
    width: int
    mask: str = "full"
    dtype: str = "bfloat16"
    method: Method = "ring"
    backward: bool = True

    def __post_init__(self) -> None:
        parse_mask(self.mask)
        for name in ("batch", "sequence", "heads", "kv_heads", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}.")

    def make(self, mesh: Mesh) -> Workload:
        """Returns the call on a mesh.

        Raises:
          ValueError: if sizes do not divide.
        """
        if not self.takes(mesh.shape):
            raise ValueError(
                f"mesh: expected data * fsdp to divide B={self.batch}, seq to divide "
                f"T={self.sequence} and model to divide N={self.heads}; got {dict(mesh.shape)}."
            )
        mask, spread = parse_mask(self.mask), partition_on(mesh.shape, self.method)

        def attend(q: Array, k: Array, v: Array) -> Array:
            out: Array = attnjax.attention(q, k, v, mask=mask, partition=spread)
            return out

        def both(q: Array, k: Array, v: Array, d_out: Array) -> Any:
            out, pull = jax.vjp(attend, q, k, v)
            return out, pull(d_out)

        B, T, N, K, H = self.batch, self.sequence, self.heads, self.kv_heads, self.width
        keys = "model" if K % mesh.shape["model"] == 0 else None

        def shaped(heads: int, axis: str | None) -> Any:
            place = NamedSharding(mesh, PartitionSpec(BATCH_AXES, "seq", axis))
            return jax.ShapeDtypeStruct((B, T, heads, H), jnp.dtype(self.dtype), sharding=place)

        arrays = {"inputs: q": shaped(N, "model"), "inputs: k": shaped(K, keys)}
        arrays["inputs: v"] = arrays["inputs: k"]
        if self.backward:
            arrays["inputs: cotangent"] = arrays["inputs: q"]
        passes = "forward and backward" if self.backward else "forward"
        return Workload(
            title=f"attention of {B} x {T:,} queries, {N} heads of {H} over {K}, {passes}",
            function=jax.jit(both if self.backward else attend),
            arguments=arrays,
            mesh=mesh,
            settings=dataclasses.asdict(self),
            attention=lambda: attention_flops(
                arrays["inputs: q"],
                arrays["inputs: k"],
                mask,
                forward=not self.backward,
                backward=self.backward,
            ),
        )

    def takes(self, mesh: Mapping[str, int]) -> bool:
        """Whether the call's sizes divide by those of a mesh."""
        rows = mesh["data"] * mesh["fsdp"]
        return not (self.batch % rows or self.sequence % mesh["seq"] or self.heads % mesh["model"])

    def size(self, axis: str) -> int:
        """Returns B or T."""
        return self.batch if axis == "batch" else self.sequence

    def granule(self, axis: str, mesh: Mapping[str, int]) -> int:
        """Returns the steps in which B or T can grow on a mesh."""
        return mesh["data"] * mesh["fsdp"] if axis == "batch" else 256 * mesh["seq"]

    def resized(self, axis: str, size: int) -> AttentionCall:
        """Returns the call with another B or T."""
        if axis == "batch":
            return dataclasses.replace(self, batch=size)
        return dataclasses.replace(self, sequence=size)

    def option(self, axis: str) -> str:
        """Returns the option that gives it its B or T."""
        sizes = (self.batch, self.sequence, self.heads, self.kv_heads, self.width)
        return f"--attention {','.join(map(str, sizes))}"

    def changes(self, mesh: Mapping[str, int]) -> Iterator[Change]:
        """Yields nothing: all that can change is the mesh, the target and the sizes."""
        yield from ()


def parse_shape(text: str) -> dict[str, int]:
    """Reads `B,T,N,K,H`.

    Raises:
      ValueError: if the text is something else.
    """
    names = ("batch", "sequence", "heads", "kv_heads", "width")
    sizes = text.split(",")
    if len(sizes) != len(names) or not all(size.strip().isdigit() for size in sizes):
        raise ValueError(f"attention: expected five sizes B,T,N,K,H; got {text!r}.")
    return {name: int(size) for name, size in zip(names, sizes, strict=True)}


def parse_mask(text: str) -> Mask:
    """Reads a mask, such as `causal`, `window:1023:0` or `causal&strided:4`.

    Raises:
      ValueError: for an unknown mask, or numbers that it does not take.
    """
    found: Mask | None = None
    for part in text.split("&"):
        name, *numbers = part.strip().split(":")
        make, least, most = _MASKS.get(name, (attnjax.Full, -1, -1))
        if not least <= len(numbers) <= most or not all(re.fullmatch(r"-?\d+", n) for n in numbers):
            known = ", ".join(n + ":N" * count for n, (_, _, count) in _MASKS.items())
            raise ValueError(
                f"mask: expected some of {known}, joined by &, with numbers for N; got {text!r}."
            )
        mask = make(*map(int, numbers))
        found = mask if found is None else found & mask
    assert found is not None
    return found
