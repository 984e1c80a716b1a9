import pytest

from attnjax.plan import hlo, memory

# Cut down from what libtpu wrote for a scan over 16 layers and its gradient.
TEXT = """HloModule jit_f, is_scheduled=true, num_partitions=4

%fused (p.1: bf16[64,128], p.2: bf16[128,128]) -> bf16[64,128] {
  %p.1 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %p.2 = bf16[128,128]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %conv = bf16[64,128]{1,0} convolution(%p.1, %p.2), dim_labels=bf_io->bf
}

%body (t.1: (s32[], bf16[64,128], bf16[16,64,128], bf16[128,128])) -> (s32[], bf16[64,128], bf16[16,64,128], bf16[128,128]) {
  %t.1 = (s32[]{:T(128)}, bf16[64,128]{1,0}, bf16[16,64,128]{2,1,0}, bf16[128,128]{1,0}) parameter(0)
  %x = bf16[64,128]{1,0} get-tuple-element(%t.1), index=1
  %w = bf16[128,128]{1,0} get-tuple-element(%t.1), index=3
  ROOT %f = bf16[64,128]{1,0} fusion(%x, %w), kind=kOutput, calls=%fused
}

%condition (t.2: (s32[], bf16[64,128], bf16[16,64,128], bf16[128,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(16)
  %t.2 = (s32[]{:T(128)}, bf16[64,128]{1,0}, bf16[16,64,128]{2,1,0}, bf16[128,128]{1,0}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%t.2), index=0
  ROOT %less = pred[]{:T(512)} compare(%n, %limit), direction=LT
}

ENTRY %main.5_spmd (a.1: bf16[64,128], a.2: bf16[128,128]) -> bf16[64,128] {
  %a.1 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %a.2 = bf16[128,128]{1,0:T(8,128)(2,1)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %space = bf16[16,64,128]{2,1,0} custom-call(), custom_call_target="AllocateBuffer"
  %later = bf16[16,64,128]{2,1,0} custom-call(), custom_call_target="AllocateBuffer"
  %fast = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} negate(%a.1)
  %first = (s32[]{:T(128)}, bf16[64,128]{1,0}, bf16[16,64,128]{2,1,0}, /*index=3*/bf16[128,128]{1,0}) tuple(%zero, %fast, %space, %a.2)
  %loop.1 = (s32[]{:T(128)}, bf16[64,128]{1,0}, bf16[16,64,128]{2,1,0}, bf16[128,128]{1,0}) while(%first), condition=%condition, body=%body, metadata={op_name="jit(f)/jvp()/while"}
  %kept = bf16[16,64,128]{2,1,0} get-tuple-element(%loop.1), index=2
  %weights = bf16[128,128]{1,0} get-tuple-element(%loop.1), index=3
  %small = bf16[64,128]{1,0} copy(%a.1)
  %second = (s32[]{:T(128)}, bf16[64,128]{1,0}, bf16[16,64,128]{2,1,0}, bf16[128,128]{1,0}) tuple(%zero, %small, %kept, %weights)
  %loop.2 = (s32[]{:T(128)}, bf16[64,128]{1,0}, bf16[16,64,128]{2,1,0}, bf16[128,128]{1,0}) while(%second), condition=%condition, body=%body, metadata={op_name="jit(f)/transpose(jvp())/while"}, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %out = bf16[64,128]{1,0} get-tuple-element(%loop.2), index=1
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def program():
    return hlo.parse(TEXT)


def test_instructions(program):
    assert program.entry == "main.5_spmd"
    fusion = program.instructions["f"]
    assert (fusion.opcode, fusion.operands, fusion.called) == ("fusion", ("x", "w"), ("fused",))
    assert program.instructions["first"].operands == ("zero", "fast", "space", "a.2")
    assert program.homes["conv"] == "fused"
    assert program.callers["fused"] == (fusion, "body")


def test_bytes_are_those_of_all_arrays(program):
    assert hlo.bytes_of(program.instructions["kept"].shape) == 16 * 64 * 128 * 2
    assert hlo.bytes_of("(f32[3,5]{1,0:T(8,128)}, pred[7], /*index=2*/s4[6]{0}, u32[])") == (
        60 + 7 + 3 + 4
    )


def test_loops_say_how_often_they_run(program):
    assert program.trips(program.instructions["loop.1"]) == 16
    assert program.trips(program.instructions["loop.2"]) == 5
    times, unknown = program.times()
    assert (times["main.5_spmd"], times["body"], times["fused"], unknown) == (1, 21, 21, [])


def test_a_loop_that_does_not_say_is_named_and_counted_once():
    program = hlo.parse(TEXT.replace("constant(16)", "parameter(1)").replace("known_trip", "trip"))
    times, unknown = program.times()
    assert (times["body"], unknown) == (2, ["loop.1", "loop.2"])


def test_what_multiplies_matrices(program):
    named = program.instructions
    assert [name for name in named if program.works(named[name])] == [
        "conv",
        "f",
        "loop.1",
        "loop.2",
    ]


def test_text_without_entry_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        hlo.parse("HloModule nothing")


def test_activations_are_what_the_forward_loop_wrote_and_the_backward_loop_reads(program):
    # The stack of 16, which the loop wrote in place, and a copy; neither the arguments, nor space
    # for later, nor what lies in fast memory.
    assert memory.kept_bytes(program) == (16 + 1) * 64 * 128 * 2


def test_nothing_is_kept_without_a_backward_pass():
    assert memory.kept_bytes(hlo.parse(TEXT.replace("transpose(jvp())", "jvp()"))) == 0
