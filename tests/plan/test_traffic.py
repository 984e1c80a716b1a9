import pytest

from attnjax.plan import hlo
from attnjax.plan.traffic import traffic

STACK, MATRIX, ROW = 16 * 8 * 8 * 4, 8 * 8 * 4, 8 * 4

# A loop of 16 that takes a slice of a stack, multiplies, and writes a slice of another in place.
TEXT = """HloModule jit_f, is_scheduled=true

%take (p.1: f32[16,8,8], p.2: s32[]) -> f32[8,8] {
  %p.1 = f32[16,8,8]{2,1,0} parameter(0)
  %p.2 = s32[] parameter(1)
  %cut = f32[1,8,8]{2,1,0} dynamic-slice(%p.1, %p.2), dynamic_slice_sizes={1,8,8}
  ROOT %flat = f32[8,8]{1,0} bitcast(%cut)
}

%put (p.3: f32[16,8], p.4: f32[8,8], p.5: s32[]) -> f32[16,8] {
  %p.3 = f32[16,8]{1,0} parameter(0)
  %p.4 = f32[8,8]{1,0} parameter(1)
  %p.5 = s32[] parameter(2)
  %row = f32[1,8]{1,0} reduce(%p.4), dimensions={0}, to_apply=%add
  ROOT %written = f32[16,8]{1,0} dynamic-update-slice(%p.3, %row, %p.5)
}

%body (t.1: (s32[], f32[16,8,8], f32[16,8])) -> (s32[], f32[16,8,8], f32[16,8]) {
  %t.1 = (s32[], f32[16,8,8]{2,1,0}, f32[16,8]{1,0}) parameter(0)
  %n = s32[]{:S(6)} get-tuple-element(%t.1), index=0
  %stack = f32[16,8,8]{2,1,0} get-tuple-element(%t.1), index=1
  %sums = f32[16,8]{1,0} get-tuple-element(%t.1), index=2
  %one = f32[8,8]{1,0} fusion(%stack, %n), kind=kLoop, calls=%take
  %fast = f32[8,8]{1,0:T(8,128)S(1)} dot(%one, %one), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %new = f32[16,8]{1,0} fusion(%sums, %fast, %n), kind=kLoop, calls=%put
  ROOT %t.2 = (s32[], f32[16,8,8]{2,1,0}, f32[16,8]{1,0}) tuple(%n, %stack, %new)
}

%condition (t.3: (s32[], f32[16,8,8], f32[16,8])) -> pred[] {
  %limit = s32[] constant(16)
  %t.3 = (s32[], f32[16,8,8]{2,1,0}, f32[16,8]{1,0}) parameter(0)
  %k = s32[] get-tuple-element(%t.3), index=0
  ROOT %less = pred[] compare(%k, %limit), direction=LT
}

ENTRY %main (a: (s32[], f32[16,8,8], f32[16,8])) -> f32[8,8] {
  %a = (s32[], f32[16,8,8]{2,1,0}, f32[16,8]{1,0}) parameter(0)
  ROOT %loop = (s32[], f32[16,8,8]{2,1,0}, f32[16,8]{1,0}) while(%a), condition=%condition, body=%body
}
"""  # noqa: E501


def test_slices_count_as_slices_and_fast_memory_not_at_all():
    # In each step: a slice read and written, and read twice by the product, whose result stays in
    # fast memory; a row written in place. The condition reads two numbers and writes a predicate.
    step = 2 * MATRIX + 2 * MATRIX + ROW
    assert traffic(hlo.parse(TEXT)) == 16 * (step + 2 * 4 + 1)


@pytest.mark.parametrize(
    ("old", "new", "more"),
    [
        # Another use of the stack needs all of it.
        ("bitcast(%cut)", "custom-call(%cut, %p.1)", STACK - MATRIX),
        # A result in large memory is written, and read again.
        ("T(8,128)S(1)", "T(8,128)", 2 * MATRIX),
    ],
)
def test_what_needs_more_counts_more(old, new, more):
    before, after = (traffic(hlo.parse(text)) for text in (TEXT, TEXT.replace(old, new)))
    assert after - before == 16 * more
