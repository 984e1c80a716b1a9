"""Kernels whose branches and loops depend on data in SMEM; compiled in a process of their own."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

GRID = (10, 16)


def kinds(dtype):
    return np.random.default_rng(0).integers(0, 3, GRID).astype(dtype)


def branching(*, dtype, flat, block=128):
    """A product of matrices where the kind is 1, an exponential where it is 2."""
    table = kinds(dtype)
    table = table.ravel() if flat else table

    def kernel(table_ref, x_ref, out_ref):
        i, j = pl.program_id(0), pl.program_id(1)

        @pl.when(j == 0)
        def _():
            out_ref[...] = jnp.zeros_like(out_ref)

        kind = (table_ref[i * GRID[1] + j] if flat else table_ref[i, j]).astype(jnp.int32)

        @pl.when(kind == 2)
        def _():
            out_ref[...] += jnp.exp(x_ref[...])

        @pl.when(kind == 1)
        def _():
            out_ref[...] += jnp.dot(x_ref[...], x_ref[...], preferred_element_type=jnp.float32)

    return _called(kernel, table, block)


def looping(*, dtype):
    """A product of matrices as often as the table says."""

    def kernel(table_ref, x_ref, out_ref):
        def body(_, a):
            return a * 0.5 + jnp.dot(a, a, preferred_element_type=jnp.float32)

        trips = table_ref[pl.program_id(0), pl.program_id(1)].astype(jnp.int32)
        out_ref[...] = jax.lax.fori_loop(0, trips, body, x_ref[...])

    return _called(kernel, kinds(dtype), 128)


def failing():
    raise ValueError("no such case")


def _called(kernel, table, block):
    shape = jax.ShapeDtypeStruct((GRID[0] * block, block), jnp.float32)
    spec = pl.BlockSpec((block, block), lambda i, j, table: (i, 0))
    call = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1, grid=GRID, in_specs=[spec], out_specs=spec
        ),
        out_shape=shape,
        name="probe",
    )
    return lambda x: call(jnp.asarray(table), x), (shape,)
