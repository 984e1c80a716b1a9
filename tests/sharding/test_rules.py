"""Rules: parameters of every module of attnjax.nn have a place, and what has none is named."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from attnjax.nn import (
    AdditiveAttention,
    AttentionOptions,
    AttentionPooling,
    Decoder,
    LearnedPositions,
    RelativeBias,
    TransformerConfig,
)
from attnjax.sharding.rules import TRANSFORMER, Rules, shardings

SIZES = {"data": 2, "fsdp": 2, "model": 4, "seq": 1}
MESH = AbstractMesh(tuple(SIZES.values()), tuple(SIZES))
ALL = dataclasses.replace(TRANSFORMER, min_size=1)


def specs(module: nnx.Module, rules: Rules = ALL) -> dict[str, P]:
    params = nnx.to_pure_dict(nnx.split(module, nnx.Param, ...)[1])
    placed = shardings(params, MESH, rules)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): place.spec
        for path, place in jax.tree_util.tree_leaves_with_path(placed)
    }


def decoder(**changes: object) -> Decoder:
    options = AttentionOptions(
        position=RelativeBias(reach=3), qk_norm="layer", sinks=True, key_bias=True
    )
    base = {"features": 32, "num_heads": 8, "num_layers": 2, "num_kv_heads": 4, "hidden": 40}
    config = TransformerConfig(**{**base, "attention": options, "activation": "swiglu", **changes})
    return Decoder(config, cross=True, rngs=nnx.Rngs(0))


def test_a_transformer() -> None:
    found = specs(decoder())
    layer = "stack.layers.1.attention"
    assert found[f"{layer}.query.kernel"] == P("fsdp", "model", None)
    assert found[f"{layer}.key.kernel"] == P("fsdp", "model", None)
    assert found[f"{layer}.value.bias"] == P("model", "fsdp")
    assert found[f"{layer}.out.kernel"] == P("model", None, "fsdp")
    assert found[f"{layer}.sinks"] == P("model")
    assert found["stack.layers.0.feed_forward.gate.kernel"] == P("fsdp", "model")
    assert found["stack.layers.0.feed_forward.down.kernel"] == P("model", "fsdp")
    assert found["stack.layers.0.feed_forward.up.bias"] == P("model")
    assert found["stack.layers.0.cross.out.kernel"] == P("model", None, "fsdp")


def test_scanned_layers_lie_as_single_ones_do() -> None:
    listed, scanned = specs(decoder()), specs(decoder(scan_layers=True))
    for name, spec in scanned.items():
        single = listed[name.replace("layers.", "layers.0.")]
        assert spec == (P(None, *single) if "layers" in name else single), name


def test_small_parameters_are_not_split_for_their_own_sake() -> None:
    found = specs(decoder(), dataclasses.replace(TRANSFORMER, min_size=1100))
    assert found["stack.layers.0.attention.query.kernel"] == P(None, "model", None)  # 1,024
    assert found["stack.layers.0.feed_forward.up.kernel"] == P("fsdp", "model")  # 1,280


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("pooling", AttentionPooling(16, num_heads=2, hidden_features=32, rngs=nnx.Rngs(0))),
        ("words", nnx.Embed(12, 8, rngs=nnx.Rngs(0))),
        ("decoder", decoder(attention=AttentionOptions(position=LearnedPositions(max_length=10)))),
        ("reader", AdditiveAttention(16, num_heads=4, rngs=nnx.Rngs(0))),
    ],
)
def test_every_large_parameter_of_our_modules_has_a_rule(name: str, module: nnx.Module) -> None:
    params = {name: nnx.to_pure_dict(nnx.split(module, nnx.Param, ...)[1])}
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        dotted = jax.tree_util.keystr(path, simple=True, separator=".")
        small = x.ndim == 1 or "score_" in dotted
        assert small or TRANSFORMER.logical(dotted, x.shape) is not None, dotted


def test_the_largest_dimension_that_divides() -> None:
    rules = Rules(paths=(("w", (None, "heads", None)),), axes=(("heads", "model"),), min_size=1)
    assert rules.spec("w", (6, 8, 4), SIZES) == P("fsdp", "model", None)
    assert rules.spec("w", (7, 8, 4), SIZES) == P(None, "model", "fsdp")
    assert rules.spec("w", (4, 8, 4), SIZES) == P("fsdp", "model", None)
    assert rules.spec("w", (9, 7, 8, 3), {**SIZES, "model": 1}) == P(None, None, "fsdp", None)
    assert rules.spec("w", (8, 7, 4, 4), SIZES) == P(None, None, "model", "fsdp")  # not layers
    assert rules.spec("w", (6, 8, 4), {**SIZES, "fsdp": 1, "model": 1}) == P(None, None, None)
    own = rules.extended(axes=(("heads", ("model", "fsdp")),))
    assert own.spec("w", (6, 8, 4), SIZES) == P(None, ("model", "fsdp"), None)


def test_own_rules_come_first() -> None:
    rules = TRANSFORMER.extended(
        paths=((r"^special\.kernel$", ("mlp", "embed")),), axes=(("embed", "data"),)
    )
    assert rules.spec("special.kernel", (8, 6), SIZES) == P("model", "data")
    assert rules.spec("block.up.kernel", (6, 8), SIZES) == P("data", "model")


@pytest.mark.parametrize(
    ("path", "shape", "rules", "message"),
    [
        (
            "block.query.kernel",
            (24, 6, 4),
            TRANSFORMER,
            r"^block\.query\.kernel \[24, 6, 4\]: dimension 1 \(heads, 6\) must be a multiple of "
            r"the mesh axes that split it, model=4\.",
        ),
        (
            "block.up.kernel",
            (24, 32),
            TRANSFORMER.extended(axes=(("embed", ("fsdp", "model")),)),
            r"^block\.up\.kernel \[24, 32\]: the mesh axis 'model' \(size 4\) would split two "
            r"dimensions, 0 \(embed, 24\) and 1 \(mlp, 32\)",
        ),
        (
            "block.up.kernel",
            (25, 32),
            ALL,
            r"'fsdp' \(size 2\) must divide one of the dimensions that nothing else splits, \[25\]",
        ),
        (
            "conv.kernel",
            (3, 5, 7),
            ALL,
            r"^conv\.kernel \[3, 5, 7\]: no rule names this parameter.*"
            r"Add \('conv\\\\\.kernel', \(None, None, None\)\)",
        ),
        ("a.query.kernel", (8, 9), TRANSFORMER, r"expected 3 dimensions .* got shape \[8, 9\]"),
        (
            "w",
            (8, 8),
            TRANSFORMER.extended(axes=(("embed", "pipe"),)),
            r"use the mesh axis 'pipe', which the mesh does not have; it has data=2, fsdp=2, ",
        ),
    ],
)
def test_what_cannot_be_placed(path: str, shape: tuple, rules: Rules, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rules.spec(path, shape, SIZES)


def test_parameters_without_a_rule() -> None:
    assert TRANSFORMER.spec("conv.kernel", (3, 5, 7), SIZES) == P()  # too small to matter
    alone = {"data": 8, "fsdp": 1, "model": 1, "seq": 1}
    assert ALL.spec("conv.kernel", (3, 5, 7), alone) == P()  # nothing could split it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"paths": (("(", ()),)}, r"expected a regular expression, got '\('"),
        ({"paths": (("w", ("heads",)),)}, "names the logical axis 'heads', which Rules.axes does"),
        ({"axes": (("a", None), ("a", "model"))}, r"got two of \['a'\]"),
        ({"min_size": -1}, "expected at least 0, got -1"),
    ],
)
def test_rules_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rules(**{"paths": (), "axes": (), **options})


def test_shapes_are_enough() -> None:
    shapes = {"up": {"kernel": jax.ShapeDtypeStruct((8, 8), jnp.float32)}}
    placed = shardings(shapes, MESH, ALL)
    assert placed["up"]["kernel"].spec == P("fsdp", "model")
