import pytest
from jax.sharding import AbstractMesh

from attnjax.plan import collectives, hlo

MESH = AbstractMesh((2, 4), ("data", "seq"))

# Cut down from what libtpu wrote: a product between start and end of one exchange and none between
# those of another; one gathered piece by piece beside two products; an all-reduce of which each
# device keeps a part; and one in a loop, on another core.
TEXT = """HloModule jit_f, is_scheduled=true, num_partitions=8

%piece.1 (q.1: bf16[8,128]) -> bf16[32,128] {
  %q.1 = bf16[8,128]{1,0} parameter(0)
  ROOT %gather.1 = bf16[32,128]{1,0} all-gather(%q.1), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}, use_global_device_ids=true
}

%piece.2 (q.2: bf16[8,128]) -> bf16[32,128] {
  %q.2 = bf16[8,128]{1,0} parameter(0)
  %product = bf16[8,8]{1,0} convolution(%q.2, %q.2), dim_labels=bf_oi->bf
  ROOT %gather.2 = bf16[32,128]{1,0} all-gather(%q.2), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}, use_global_device_ids=true
}

%all-reduce-scatter.3 (q.3: f32[64]) -> f32[32] {
  %q.3 = f32[64]{0} parameter(0)
  %sum = f32[64]{0} all-reduce(%q.3), channel_id=8, replica_groups=mesh['a'=2,'b'=4] {'a'}, to_apply=%add
  ROOT %own = f32[32]{0} slice(%sum), slice={[0:32]}
}

%wrapped (q.4: f32[10]) -> f32[10] {
  %q.4 = f32[10]{0} parameter(0)
  ROOT %all = f32[10]{0} all-reduce(%q.4), channel_id=9, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}

%async (q.5: f32[10]) -> f32[10] {
  %q.5 = f32[10]{0} parameter(0)
  ROOT %call = f32[10]{0} custom-call(%q.5), custom_call_target="core", called_computations={%wrapped}
}

%body (t.1: (s32[], f32[10])) -> (s32[], f32[10]) {
  %t.1 = (s32[], f32[10]{0}) parameter(0)
  %x = f32[10]{0} get-tuple-element(%t.1), index=1
  %begun = ((f32[10]), f32[10]) async-start(%x), calls=%async
  %ended = f32[10]{0} async-done(%begun)
}

%condition (t.2: (s32[], f32[10])) -> pred[] {
  %limit = s32[] constant(3)
  %t.2 = (s32[], f32[10]{0}) parameter(0)
  %n = s32[] get-tuple-element(%t.2), index=0
  ROOT %less = pred[] compare(%n, %limit), direction=LT
}

ENTRY %main (a.1: bf16[8,128], a.2: f32[64], a.3: (s32[], f32[10])) -> bf16[8,128] {
  %a.1 = bf16[8,128]{1,0} parameter(0)
  %a.2 = f32[64]{0} parameter(1)
  %a.3 = (s32[], f32[10]{0}) parameter(2)
  %start.1 = (bf16[8,128]{1,0}, bf16[8,128]{1,0}, u32[], u32[]) collective-permute-start(%a.1), channel_id=1, source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}
  %kernel = bf16[8,128]{1,0} custom-call(%a.1), custom_call_target="tpu_custom_call"
  %done.1 = bf16[8,128]{1,0} collective-permute-done(%start.1)
  %start.2 = (bf16[8,128]{1,0}, bf16[8,128]{1,0}, u32[], u32[]) collective-permute-start(%done.1), channel_id=2, source_target_pairs={{0,4},{4,0},{1,5},{5,1},{2,6},{6,2},{3,7},{7,3}}
  %done.2 = bf16[8,128]{1,0} collective-permute-done(%start.2)
  %f.1 = bf16[32,128]{1,0} fusion(%done.2), kind=kCustom, calls=%piece.1
  %f.2 = bf16[32,128]{1,0} fusion(%done.2), kind=kCustom, calls=%piece.2
  %f.3 = f32[32]{0} fusion(%a.2), kind=kCustom, calls=%all-reduce-scatter.3
  %exchange = f32[64]{0} all-to-all(%a.2), channel_id=3, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
  %alone = f32[64]{0} all-reduce(%a.2), channel_id=4, replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  ROOT %loop = (s32[], f32[10]{0}) while(%a.3), condition=%condition, body=%body
}
"""  # noqa: E501


def test_kinds_axes_counts_bytes_and_overlap():
    found = {
        (c.kind, c.axes, c.devices, c.count, c.bytes, c.overlaps)
        for c in collectives.find(hlo.parse(TEXT), MESH)
    }
    assert found == {
        ("collective-permute", ("seq",), 4, 1, 2048, True),
        ("collective-permute", ("data",), 2, 1, 2048, False),
        ("all-gather", ("seq",), 4, 1, 6144, True),  # once, although two products hold it
        ("reduce-scatter", ("data",), 2, 1, 128, False),
        ("all-to-all", ("data",), 2, 1, 128, False),
        ("all-reduce", ("data", "seq"), 8, 3, 3 * 2 * 35, False),
    }


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}, x=1", (0, 4)),
        ("replica_groups={}, x=1", tuple(range(8))),
        ("replica_groups=[2,4]<=[8], x=1", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x=1", (0, 4)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, x=1", (0, 1, 2, 3)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", tuple(range(8))),
        ("source_target_pairs={{0,2},{2,4},{4,6},{6,0},{1,3}}, x=1", (0, 2, 4, 6)),
    ],
)
def test_groups_in_every_form(text, group):
    instruction = hlo.Instruction("x", "f32[]", "all-reduce", (), text)
    assert collectives.group_of(instruction, 8) == group


def test_an_unknown_form_of_groups_is_an_error():
    instruction = hlo.Instruction("x", "f32[]", "all-reduce", (), "replica_groups=@mesh {x}")
    with pytest.raises(ValueError, match="unknown form"):
        collectives.group_of(instruction, 8)
