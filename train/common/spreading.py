"""What a training config changes about a model that its task has built."""

from __future__ import annotations

from collections.abc import Mapping

from flax import nnx

from attnjax.nn import spread
from attnjax.nn.stack import LayerStack
from attnjax.sharding.laying import partition_on
from train.common.config import TrainConfig


def prepare_model(model: nnx.Module, config: TrainConfig, sizes: Mapping[str, int] | None) -> None:
    """Spreads a model over a mesh and has it recompute what the config says, in place.

    Rematerialisation belongs to each layer of a stack: around the whole loss it would keep nothing
    during the forward pass, only to have all of it again, at once, before the backward pass begins.
    On a CPU it saves memory in scanned layers only.

    Args:
        model: as the task built it.
        config: the training config.
        sizes: of the mesh's axes; None without a mesh.

    Raises:
        ValueError: nothing in the model can do what is asked for.
    """
    if config.remat != "none":
        stacks = [module for _, module in nnx.iter_modules(model) if isinstance(module, LayerStack)]
        for stack in stacks:
            stack.remat = config.remat
        if not stacks:
            raise ValueError(
                f"remat={config.remat} recomputes the layers of a Transformer stack, and this "
                "model has none; leave it at none"
            )
    if sizes is None:
        return
    if not spread(model, partition_on(sizes, config.sequence_method)) and sizes["seq"] > 1:
        raise ValueError(
            f"mesh: seq={sizes['seq']} splits sequences inside attention layers, and this model "
            "has none; give these devices to data or fsdp"
        )
