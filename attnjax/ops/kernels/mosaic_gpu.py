"""What attnjax needs of Mosaic GPU, alike on all versions of jax, compiled or interpreted.

The interpreter, which jax has from 0.12 on, multiplies matrices in shared memory only and starts
every product at zero. What needs more on the GPU goes through functions of this module, which do
the same in both ways.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

WARPGROUP = 64
"""Rows of a product that one warpgroup computes."""

TILE = plgpu.Layout.WGMMA
ROWS = plgpu.Layout.WGMMA.reduce(1)
COLUMNS = plgpu.Layout.WGMMA.reduce(0)
LOG2_E = math.log2(math.e)

_load: Any = plgpu.load
_LOAD_TAKES_INDEX = "idx" in inspect.signature(_load).parameters

barrier_arrive, barrier_wait = plgpu.barrier_arrive, plgpu.barrier_wait
commit_smem, wait_smem_to_gmem = plgpu.commit_smem, plgpu.wait_smem_to_gmem
copy_gmem_to_smem, copy_smem_to_gmem = plgpu.copy_gmem_to_smem, plgpu.copy_smem_to_gmem


def call(
    body: Callable[..., None],
    arrays: Sequence[Array],
    *,
    out: Sequence[jax.ShapeDtypeStruct],
    scratch: Mapping[str, Any],
    grid: tuple[int, int, int],
    threads: int,
    interpret: bool,
) -> Sequence[Array]:
    """Runs a kernel.

    Args:
      body: `body(*inputs, *outputs, **scratch)`, on references.
      arrays: the inputs.
      out: the outputs.
      scratch: shared memory and barriers by name; None entries are handed over as None.
      grid: sizes of the axes `x`, `y` and `z`.
      threads: number of warpgroups, along the axis `wg`.
      interpret: whether to run in the interpreter.

    Returns:
      The outputs.

    Raises:
      NotImplementedError: if this jax has no interpreter.
    """
    given = {name: x for name, x in scratch.items() if x is not None}
    absent = dict.fromkeys(scratch.keys() - given.keys())

    def kernel(*refs: Any, **scoped: Any) -> None:
        body(*refs, **scoped, **absent)

    kernel.__name__ = body.__name__
    return plgpu.kernel(
        kernel,
        out_type=list(out),
        scratch_types=given,
        grid=grid,
        grid_names=("x", "y", "z"),
        num_threads=threads,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpreter() if interpret else None,
    )(*arrays)


def interpreter() -> Any:
    """Returns what makes Mosaic GPU kernels run in the interpreter.

    Raises:
      NotImplementedError: if this jax has none.
    """
    if jax.__version_info__ < (0, 12):
        raise NotImplementedError(
            f"jax {jax.__version__} has no interpreter for Mosaic GPU kernels that runs them; jax "
            "0.12 has. Use implementation='blockwise', or attnjax.emulate('gpu', interpret=False) "
            "to compile."
        )
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams()


def matrix(*shape: int, dtype: jnp.dtype) -> Any:
    """Returns shared memory for matrices of 16-bit numbers, laid out for matrix products."""
    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def vector(*shape: int) -> Any:
    """Returns shared memory for float32 vectors."""
    return plgpu.SMEM(shape, jnp.float32)


def barriers(count: int, arrivals: int = 1) -> Any:
    """Returns barriers, each passed after so many arrivals."""
    return plgpu.Barrier(num_arrivals=arrivals, num_barriers=count)


def set_registers(count: int, *, more: bool) -> None:
    """Takes registers from warpgroups that need few for those that need many."""
    plgpu.set_max_registers(count, action="increase" if more else "decrease")


def load(ref: Any, layout: Any) -> Array:
    """Loads what a reference refers to, from shared or global memory, in a layout."""
    index = ((),) if _LOAD_TAKES_INDEX else ()
    return _load(ref, *index, layout=layout, optimized=False)


def full(shape: tuple[int, ...], value: float, layout: Any) -> Array:
    """Returns a float32 array of one value."""
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def positions(first: Array, shape: tuple[int, int], axis: int) -> Array:
    """Returns the positions along an axis of a tile that begins at `first`."""
    return first + plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=TILE)


def transposed(ref: Any) -> Any:
    """Returns a matrix in shared memory, transposed."""
    return ref.transpose((1, 0))


def product(left: Any, right: Any) -> Array:
    """Multiplies two matrices in shared memory."""

    def multiply(total: Any) -> Array:
        plgpu.wgmma(total, left, right)
        return total[...]

    shape = (left.shape[0], right.shape[1])
    return pl.run_scoped(multiply, plgpu.ACC(shape, jnp.float32))


def accumulate(total: Array, left: Array, right: Any, staging: Any) -> Array:
    """Adds the product of a matrix in registers and one in shared memory to a total.

    Args:
      total: float32.
      left: of the dtype of `right`.
      right: in shared memory.
      staging: shared memory like `left`, where the interpreter puts it; None on a GPU.

    Returns:
      The new total.
    """
    if staging is None:

        def multiply(running: Any) -> None:
            plgpu.wgmma(running, left, right)

        return pl.run_state(multiply)(plgpu.ACC.init(total))
    staging[...] = left
    plgpu.commit_smem()
    return total + product(staging, right)


def across(x: Array, shape: tuple[int, int], axis: int) -> Array:
    """Spreads one number per row (`axis` 0) or per column over a tile."""
    return jax.lax.broadcast_in_dim(x, shape, (axis,))
