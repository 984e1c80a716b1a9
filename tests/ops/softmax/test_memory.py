"""What a call costs the compiler and the device does not grow with T times S."""

import jax
import jax.numpy as jnp

import attnjax


def lowered(T, mask, **options):
    shape = jax.ShapeDtypeStruct((1, T, 8, 64), jnp.float32)

    def loss(q, k, v):
        return attnjax.attention(q, k, v, mask=mask, **options).sum()

    return jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape), 3 * shape.size * 4


def test_temporaries_are_linear_in_the_sequence():
    lowering, inputs = lowered(32768, attnjax.Causal())
    assert lowering.compile().memory_analysis().temp_size_in_bytes <= 8 * inputs


def test_the_program_is_as_long_at_a_million_tokens_as_at_four_thousand():
    mask = (attnjax.Causal() & attnjax.Window(4096, 0)) | attnjax.Prefix(512)
    short, long = (lowered(T, mask)[0].as_text() for T in (4096, 1 << 20))
    assert len(long.splitlines()) == len(short.splitlines())
    # No constant is longer than the numbers that name its shape.
    assert len(long) < 1.05 * len(short)
