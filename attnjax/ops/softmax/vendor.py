"""Attention by cuDNN, for the calls that it computes exactly as the reference does.

cuDNN has no rule for rows that see nothing, none for NaN, and reads scores only as scaled dot
products under a few masks. A call is taken only where its mask is one of those and leaves no row
empty; lengths are cut off, and NaN and infinity are taken out before the kernel and put back after
it. Everything else is refused. Its backward pass adds gradients up in an order that changes from
run to run, unless XLA is started with `--xla_gpu_deterministic_ops=true`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.masks import Causal, Full, Lengths, Mask, Prefix, Window
from attnjax.masks.algebra import And
from attnjax.numerics import poison, split_nonfinite
from attnjax.ops.derivatives import differentiable
from attnjax.ops.softmax import blockwise
from attnjax.ops.softmax.cost import Blocks, Cost, blockwise_cost
from attnjax.ops.softmax.problem import Problem
from attnjax.ops.softmax.stats import AttentionStats
from attnjax.platform import platform

_WIDEST = 128
_ELSEWHERE = "Use implementation=None or 'blockwise'."
_REFUSAL = (
    "A second reverse-mode derivative of cuDNN's attention is not available. Use forward mode for "
    "the outer derivative (jax.jvp of jax.grad, jax.hessian), or implementation='reference'."
)


class Form(NamedTuple):
    """A mask in cuDNN's words.

    Attributes:
      causal: whether keys after the query are hidden.
      left: how many keys before the query are seen, or None for all.
      q_lengths: how many queries are there, numbers or arrays `[]` or `[B]`; the least counts.
      kv_lengths: the same for keys.
    """

    causal: bool
    left: int | None
    q_lengths: tuple[Any, ...]
    kv_lengths: tuple[Any, ...]


Kernel = Callable[..., Array]
"""`kernel(q, k, v, form, q_length, kv_length) -> out`, the lengths int32 `[B]` or None."""


def check(problem: Problem) -> None:
    """Raises NotImplementedError, with the reason and a remedy, unless cuDNN does what is asked."""
    here = platform()
    if here.name != "gpu":
        raise NotImplementedError(
            f"cuDNN runs on NVIDIA GPUs, and jax runs on the {here.name}. {_ELSEWHERE} To compile "
            "for a GPU that is not here, use attnjax.emulate('gpu', interpret=False)."
        )
    if here.interpret:
        raise NotImplementedError(
            "cuDNN has no interpreter: attnjax.emulate('gpu', interpret=False) can compile it, "
            "and only a GPU can run it."
        )
    if here.here:
        _check_device(jax.devices()[0])
    size = problem.sizes
    for refused, reason in (
        (
            problem.origin is not None,
            "it knows no positions but those of its own arrays, and this is a part of a sharded "
            "call that needs its place in the whole",
        ),
        (
            problem.stats,
            "it returns no statistics. Pass stats=False, or use another implementation",
        ),
        (problem.score_mods, "it takes no score_mods; a bias of -inf would empty rows, and be NaN"),
        (problem.sinks is not None, "it takes no sinks"),
        (problem.dropout is not None, "its dropout is not attnjax's, the same on every machine"),
        (problem.precision is not None, "its precision cannot be chosen. Pass precision=None"),
        (
            problem.q.dtype == jnp.float16,
            "its backward pass rounds score gradients to float16, whose range they leave. "
            "Cast to bfloat16",
        ),
        (
            problem.q.dtype not in (jnp.float16, jnp.bfloat16),
            f"it does not take {problem.q.dtype}. Cast to bfloat16",
        ),
        (
            size["H"] != size["D"],
            f"it needs values as wide as keys, got H={size['H']} and D={size['D']}",
        ),
        (
            size["H"] % 8 or size["H"] > _WIDEST,
            f"it needs a head width that is a multiple of 8 up to {_WIDEST}, got {size['H']}",
        ),
    ):
        if refused:
            raise NotImplementedError(f"cuDNN: {reason}. {_ELSEWHERE}")
    read_mask(problem.mask, size["T"], size["S"])


def _check_device(device: Any) -> None:
    """Refuses devices without cuDNN's attention."""
    version = getattr(device.client, "platform_version", "")
    if "cuda" not in version.lower():
        raise NotImplementedError(f"cuDNN needs an NVIDIA GPU, got {version!r}. {_ELSEWHERE}")
    if float(device.compute_capability) < 8:
        raise NotImplementedError(
            "cuDNN's attention needs a compute capability of at least 8.0, got "
            f"{device.compute_capability}. {_ELSEWHERE}"
        )


def read_mask(mask: Mask, T: int, S: int) -> Form:
    """Reads a mask in cuDNN's words.

    Args:
      mask: the mask.
      T: number of queries.
      S: number of keys.

    Returns:
      The form.

    Raises:
      NotImplementedError: if cuDNN has no such mask, or one that could leave a row empty.
    """
    left, right, q_lengths, kv_lengths = _parts(mask)
    left = math.inf if left >= T - 1 else left
    right = math.inf if right >= S - 1 else right
    form = Form(right == 0, None if left == math.inf else int(left), q_lengths, kv_lengths)
    if form == Form(False, None, q_lengths, kv_lengths) and right == math.inf:
        return form
    if right != 0:
        raise NotImplementedError(
            "cuDNN: of masks by position it takes causal ones only, alone or with a window to the "
            f"left; got keys from {-left} to {right} relative to the query. {_ELSEWHERE}"
        )
    if T != S:
        raise NotImplementedError(
            f"cuDNN: a causal mask needs as many queries as keys, got T={T} and S={S}: which "
            f"corner it is aligned to depends on cuDNN's version. {_ELSEWHERE}"
        )
    if left < 0 or (form.left is not None and (q_lengths or kv_lengths)):
        raise NotImplementedError(
            "cuDNN: this window may leave rows with nothing to attend to, for which cuDNN has no "
            f"rule. {_ELSEWHERE}"
        )
    return form


def cost(problem: Problem, blocks: Blocks) -> Cost:
    """Costs of cuDNN, which skips what lies beyond a causal mask and its window."""
    size = problem.sizes
    rows, keys = size["B"] * size["T"] * size["N"], size["B"] * size["S"] * size["K"]
    finite = (rows + 2 * keys) * size["H"] * problem.q.dtype.itemsize
    sums = 4 * rows * (size["H"] + 2)
    return blockwise_cost(problem, blocks)._replace(
        temporaries_forward=finite + 4 * rows, temporaries_backward=finite + sums
    )


def notes(problem: Problem) -> tuple[str, ...]:
    """Returns what to know of a call on cuDNN."""
    return (
        "cuDNN adds gradients up in an order that changes from run to run, and with it their last "
        "bits, unless XLA_FLAGS has --xla_gpu_deterministic_ops=true",
    )


def _parts(mask: Mask) -> tuple[float, float, tuple[Any, ...], tuple[Any, ...]]:
    """Returns the keys to the left and right of the query that are seen, and the lengths."""
    inf = math.inf
    match mask:
        case And():
            one, two = _parts(mask.left), _parts(mask.right)
            return min(one[0], two[0]), min(one[1], two[1]), one[2] + two[2], one[3] + two[3]
        case Full():
            return inf, inf, (), ()
        case Causal(offset=int(offset)):
            return inf, offset, (), ()
        case Window(left=int() | None as left, right=int() | None as right):
            return inf if left is None else left, inf if right is None else right, (), ()
        case Prefix():
            return inf, inf, (), (mask.length,)
        case Lengths():
            q, kv = ((x,) if x is not None else () for x in (mask.q, mask.kv))
            return inf, inf, q, kv
        case Causal() | Window():
            raise NotImplementedError(
                f"cuDNN: {mask!r} has an array, and cuDNN's causal masks have fixed numbers. Pass "
                f"integers. {_ELSEWHERE}"
            )
    raise NotImplementedError(
        f"cuDNN: it has no such mask as {mask!r}; it takes Full, Causal, Window, Prefix and "
        f"Lengths joined by &. {_ELSEWHERE}"
    )


def _cudnn(
    q: Array, k: Array, v: Array, form: Form, q_length: Array | None, kv_length: Array | None
) -> Array:
    """Calls cuDNN through JAX, with its default scale."""
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=form.causal,
        query_seq_lengths=q_length,
        key_value_seq_lengths=kv_length,
        local_window_size=None if form.left is None else (form.left, 0),
        implementation="cudnn",
    )


def attend(problem: Problem, *, kernel: Kernel = _cudnn) -> tuple[Array, AttentionStats | None]:
    """Computes attention by cuDNN.

    Args:
      problem: a call that `check` accepts; no axis may be empty.
      kernel: the kernel, which may return anything in rows beyond the lengths.

    Returns:
      The output `[B, T, N, D]` in the dtype of `v`, and None for the statistics.
    """
    arrays, structure = jax.tree.flatten(
        (problem.q, problem.k, problem.v, problem.scale, problem.mask)
    )

    def plain(args: tuple[Array, ...]) -> tuple[Array, ...]:
        return (blockwise.attend(_problem(*jax.tree.unflatten(structure, args)))[0],)

    run = functools.partial(_run, kernel, structure)
    op = differentiable(
        functools.partial(_forward, run),
        functools.partial(_backward, run),
        num_smooth=1,
        refusal=_REFUSAL,
        plain=plain,
    )
    return op(*(jnp.asarray(x) for x in arrays))[0], None


def _problem(q: Array, k: Array, v: Array, scale: Array, mask: Mask) -> Problem:
    return Problem(q, k, v, mask, (), scale, None, None, None, False)


def _forward(
    run: Callable[..., Array], args: tuple[Array, ...]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Computes the output, and as residuals what its own reverse mode keeps."""
    out, pull = jax.vjp(lambda *some: run(*some, *args[4:]), *args[:4])
    return (out,), tuple(jax.tree.leaves(pull))


def _backward(
    run: Callable[..., Array],
    args: tuple[Array, ...],
    residuals: tuple[Array, ...],
    cotangents: tuple[Array | None, ...],
    wanted: tuple[bool, ...],
) -> tuple[Array | None, ...]:
    """Calls the reverse mode that `_forward` kept, whose structure depends on shapes alone."""
    (d_out,) = cotangents
    assert d_out is not None, "the only output has a cotangent"

    def reverse(*args: Array) -> Callable[..., tuple[Array, ...]]:
        return jax.vjp(lambda *some: run(*some, *args[4:]), *args[:4])[1]

    structure = jax.tree.structure(jax.eval_shape(reverse, *args))
    grads = (*jax.tree.unflatten(structure, residuals)(d_out), *(None for _ in args[4:]))
    return tuple(g if w else None for g, w in zip(grads, wanted, strict=True))


def _run(kernel: Kernel, structure: Any, *args: Array) -> Array:
    """Calls the kernel on what it can compute, and adds what it can't."""
    q, k, v, scale, mask = jax.tree.unflatten(structure, args)
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    form = read_mask(mask, T, S)
    # The scale is an array and cuDNN's a number: queries take what differs from cuDNN's default,
    # which is exactly 1 where nobody chose a scale.
    ratio = (scale.astype(jnp.float32) * jnp.float32(math.sqrt(H))).astype(jnp.float32)
    default = jnp.asarray(1 / math.sqrt(H), scale.dtype)
    ratio = ratio + jax.lax.stop_gradient(jnp.where(scale == default, 1 - ratio, 0))
    (q, q_bad), (k, k_bad), (v, v_bad) = (split_nonfinite(x) for x in (q, k, v))
    q = (q.astype(jnp.float32) * ratio).astype(q.dtype)
    q_length, kv_length = (
        _least(lengths, B, most) for lengths, most in ((form.q_lengths, T), (form.kv_lengths, S))
    )
    rows, keys = jnp.ones((B, T), bool), jnp.ones((B, S), bool)
    if q_length is not None:
        rows = jnp.arange(T) < q_length[:, None]
    if kv_length is not None:
        keys = jnp.arange(S) < kv_length[:, None]
        rows &= kv_length[:, None] > 0
        # An empty sequence has no rows, so that its one key is seen by none.
        kv_length = jnp.maximum(kv_length, 1)
    bad_keys = (k_bad | v_bad) & keys[..., None]
    bad_rows = (q_bad | jnp.repeat(_met(bad_keys, T, form), N // K, 2)) & rows[..., None]
    met_by = jnp.any(bad_rows.reshape(B, T, K, N // K), axis=-1)
    spoiled = _met(met_by[:, ::-1], S, form)[:, ::-1] & keys[..., None]
    q = _spoil(jnp.where(rows[..., None, None], q, 0), bad_rows)
    k, v = (_spoil(jnp.where(keys[..., None, None], x, 0), spoiled) for x in (k, v))
    out = kernel(q, k, v, form, q_length, kv_length)
    out = jnp.where(rows[..., None, None], out, 0)
    return out + poison(bad_rows, out.dtype)[..., None]


def _least(lengths: tuple[Any, ...], B: int, most: int) -> Array | None:
    """Returns the least of some lengths, int32 `[B]` from 0 to `most`; None if there is none."""
    if not lengths:
        return None
    least = functools.reduce(jnp.minimum, (jnp.asarray(x).astype(jnp.int32) for x in lengths))
    return jnp.broadcast_to(jnp.clip(least, 0, most), (B,))


def _met(bad: Array, length: int, form: Form) -> Array:
    """Returns which rows `[B, length, K]` see a bad key `[B, S, K]`; mirrored, the converse."""
    if not form.causal:
        met = jnp.any(bad, axis=1, keepdims=True)
        return jnp.broadcast_to(met, (bad.shape[0], length, bad.shape[2]))
    count = jnp.cumsum(bad.astype(jnp.int32), axis=1)
    if form.left is not None:
        before = jnp.pad(count, ((0, 0), (form.left + 1, 0), (0, 0)))[:, :length]
        count = count - before
    return count > 0


@jax.custom_vjp
def _spoil(x: Array, bad: Array) -> Array:
    """Returns `x [B, time, heads, width]`, whose gradient is NaN where `bad [B, time, heads]`."""
    return x


def _spoil_forward(x: Array, bad: Array) -> tuple[Array, Array]:
    return x, bad


def _spoil_backward(bad: Array, gradient: Array) -> tuple[Array, None]:
    return gradient + poison(bad, gradient.dtype)[..., None], None


_spoil.defvjp(_spoil_forward, _spoil_backward)
