"""PyTorch's attention, where torch is installed; on a GPU if it finds one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from attnjax.bench.cases import Work, named
from attnjax.bench.prepared import Prepared


def sdpa(work: Work, direction: str) -> Prepared:
    """Prepares `scaled_dot_product_attention`, with a dense mask where it knows no other."""
    import torch

    if work.soft_cap is not None:
        raise NotImplementedError("SDPA knows no soft cap")
    options: dict[str, Any] = {"is_causal": True}
    if work.window is not None or work.prefix or work.extras:
        allowed = _tensor(work.dense)
        if "bias" in work.extras:
            bias = _tensor(work.extras["bias"])
            allowed = bias.masked_fill(~allowed, float("-inf"))
        options = {"attn_mask": allowed}
    attend = torch.nn.functional.scaled_dot_product_attention
    return _prepared(lambda q, k, v: attend(q, k, v, **options), work, direction)


def flex(work: Work, direction: str) -> Prepared:
    """Prepares FlexAttention, compiled, with its block mask."""
    import torch
    from torch.nn.attention import flex_attention as library

    device = _device()
    if device == "cpu" and direction != "fwd":
        raise NotImplementedError("FlexAttention has no backward pass on CPUs")
    T = work.shape.T
    ids = _tensor(work.extras["ids"]) if "ids" in work.extras else None
    bias = _tensor(work.extras["bias"]) if "bias" in work.extras else None
    cap = work.soft_cap

    def allowed(b: Any, h: Any, q: Any, k: Any) -> Any:
        seen = q >= k
        if work.window is not None:
            seen = seen & (q - k <= work.window)
        if work.prefix:
            seen = seen | (k < work.prefix)
        if ids is not None:
            seen = seen & (ids[b, q] == ids[b, k])
        return seen

    def changed(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        if bias is not None:
            return score + bias[0, 0, q, k]
        return score if cap is None else cap * torch.tanh(score / cap)

    block_mask = library.create_block_mask(
        allowed, None if ids is None else work.shape.B, None, T, T, device=device
    )
    score_mod = None if bias is None and cap is None else changed
    # The compiler gives up on a function after eight variants, and then runs it uncompiled.
    torch._dynamo.reset()
    compiled = torch.compile(library.flex_attention, dynamic=False)
    return _prepared(
        lambda q, k, v: compiled(q, k, v, score_mod=score_mod, block_mask=block_mask),
        work,
        direction,
    )


def _prepared(attend: Callable[..., Any], work: Work, direction: str) -> Prepared:
    import torch

    arrays = [_tensor(x).transpose(1, 2).contiguous() for x in (*work.inputs, work.cotangent)]
    *qkv, cotangent = arrays

    def run() -> tuple[Any, ...]:
        if direction == "fwd":
            with torch.no_grad():
                return (attend(*qkv),)
        for x in qkv:
            x.grad = None
        out = attend(*(x.requires_grad_() for x in qkv))
        out.backward(cotangent)
        return (out.detach(), *(x.grad for x in qkv))

    def wait(outputs: Any) -> None:
        if outputs[0].is_cuda:
            torch.cuda.synchronize()

    def results() -> dict[str, np.ndarray]:
        return named(tuple(x.transpose(1, 2).float().cpu().numpy() for x in run()))

    temporaries = None
    if cotangent.is_cuda:
        run()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        outputs = run()
        torch.cuda.synchronize()
        # As XLA counts: without what is returned.
        kept = sum(x.numel() * x.element_size() for x in outputs)
        temporaries = max(torch.cuda.max_memory_allocated() - before - kept, 0)
    else:
        run()
    return Prepared(run, wait, results, temporaries, f"{cotangent.device.type}")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _tensor(x: Any) -> Any:
    """Returns an array of JAX as a tensor; through float32, for NumPy knows no bfloat16 of it."""
    import torch

    array = np.asarray(x)
    if array.dtype.name == "bfloat16":
        return torch.tensor(array.astype(np.float32)).to(_device(), torch.bfloat16)
    return torch.tensor(array).to(_device())
