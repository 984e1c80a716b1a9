"""Remedies for attention that becomes unsteady in training; each is usable alone, in any loop.

| remedy | bounds | costs | for | source |
|---|---|---|---|---|
| `qk_norm` | logits | two norms a layer | new models; the surest | [1] |
| `soft_cap` | logits | a tanh a score | new models with score biases | [2] |
| `sinks` | nothing; a place for weight | a number a head | weight piled on key 0 | [3] |
| `temperature` | nothing; sharpness is free | a number a head | beside a norm or a cap | [1] |
| `sigma_reparam` | kernels' spectral norms | a few matrix-vector products | new models | [5] |
| `qk_clip` | the next step's logits | a factor a head | models without a norm | [4] |
| `entropy_penalty` | entropies, softly | statistics' gradients | heads that narrow | [5, 6] |
| `z_loss` | logsumexp, softly | statistics' gradients | logits that drift up | [7, 8] |
| `Auto` | logits | statistics each step | not knowing what goes wrong | docs/focus.md |

The first five are options of `attnjax.nn.AttentionOptions` and belong to the model; the others can
begin in the middle of a run, and `sigma_reparam(model, keep=True)` can, too, with a new optimiser.
`fold_sigma` makes plain kernels of it for inference. `clippable(model)` says which heads QK-clip
and `Auto` can act on, and why not on others: those with `qk_norm` or `sigma_reparam`.

[1] Henry et al., "Query-Key Normalization for Transformers" (2020); Dehghani et al., "Scaling
Vision Transformers to 22 Billion Parameters" (2023). [2] Gemma Team, "Gemma 2" (2024). [3] Xiao et
al., "Efficient Streaming Language Models with Attention Sinks" (2023). [4] Kimi Team, "Kimi K2"
(2025). [5] Zhai et al., "Stabilizing Transformer Training by Preventing Attention Entropy Collapse"
(2023). [6] Pereyra et al., "Regularizing Neural Networks by Penalizing Confident Output
Distributions" (2017). [7] Zoph et al., "ST-MoE" (2022). [8] Chameleon Team, "Chameleon" (2024).
"""

from attnjax.focus.steady.auto import Actions, Auto, AutoState, Remedy, act, remedies
from attnjax.focus.steady.penalties import entropy_penalty, z_loss
from attnjax.focus.steady.projections import Heads, all_heads, clippable
from attnjax.focus.steady.qk_clip import QKClipState, clip_factors, qk_clip, scale_heads
from attnjax.focus.steady.sigma import fold_sigma, refresh_sigma, sigma_reparam
from attnjax.nn.sigma import sigma_kernel, sigma_vector

__all__ = [
    "Actions",
    "Auto",
    "AutoState",
    "Heads",
    "QKClipState",
    "Remedy",
    "act",
    "all_heads",
    "clip_factors",
    "clippable",
    "entropy_penalty",
    "fold_sigma",
    "qk_clip",
    "refresh_sigma",
    "remedies",
    "scale_heads",
    "sigma_kernel",
    "sigma_reparam",
    "sigma_vector",
    "z_loss",
]
