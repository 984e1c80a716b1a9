"""The scalar code of kernels, run on code written by hand."""

import numpy as np
import pytest

from attnjax.bench.static import listing, machine, scalars

# Sums the two words of an operand to a trip count; visits a body where a word is positive.
CODE = """
= control target key start
LB: loop body
= control target key end

     0   :  { %s9_s1 = smov.u32 [#allocation3] /* constant */  ;;  \
%s1_s0 = inlined_call_operand.hbm [shape: s32[4], index: 0, kind: input, shape index: {}] }
   0x1   :  { %2 = dma.hbm_to_smem /*hbm=*/%s1_s0, /*size_in_granules=*/1, \
/*smem=*/%s9_s1, /*dst_syncflagno=*/[#allocation1] }
   0x2   :  { %s5_s4 = smov.u32 0 /* copy for cssa */ }
   0x3 LB: > { %s6_s4 = sphi %s5_s4, %s8_s4  ;;  %s8_s4 = sadd.s32 1, %s6_s4 }
   0x4   : > { %s10_s5 = sld [smem:[#allocation3 + %s6_s4]] }
   0x5   : > { %p11_p0 = scmp.le.s32.totalorder %s10_s5, 0 }
   0x6   : > { %12 = sbr.rel (%p11_p0) target = $region7 }
   0x7   : > {}
   0x8   : > {}
   0x9   : > {}
   0xa   : > {}
   0xb   : > { %v1_v0 = vld [vmem:[#allocation5] sm:$0xff]  ;;  %v2_v1 = vmul.f32 %v1_v0, %v1_v0
hlo: text of a comment that goes on
 */ }
   0xc   : > { %13 = vst [vmem:[#allocation5] sm:$0xff] /*vst_source=*/%v2_v1 }
   0xd PF: > { %p14_p1 = scmp.ge.s32.totalorder %s8_s4, 4 /* loop exit test */ } \
/* Start/End empty region 7 */
   0xe   : > { %15 = sbr.rel (!%p14_p1) target = $region9 }
   0xf   : > {}
  0x10   : > {}
  0x11   : > {}
  0x12   : > {}
  0x13   :  { %16 = sfence }
"""


def test_counts_bundles_of_loops_and_of_branches_on_data():
    code = listing.read(CODE)
    assert code.operands == {0: "s32[4]"}
    times = machine.Machine(code).run([np.array([3, 0, -1, 2], np.int32)])
    np.testing.assert_array_equal(times, [1] * 3 + [4] * 8 + [2] * 2 + [4] * 6 + [1])


def test_counts_anew_on_other_data():
    code = machine.Machine(listing.read(CODE))
    for words in ([0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 5]):
        assert code.run([np.array(words, np.int32)])[11] == np.count_nonzero(words)


def test_a_branch_on_unknown_data_is_an_error():
    with pytest.raises(NotImplementedError, match="only the device knows"):
        machine.Machine(listing.read(CODE)).run()


@pytest.mark.parametrize(
    ("operation", "operands", "expected"),
    [
        ("sadd.s32", (2**31 - 1, 1), -(2**31)),
        ("ssub.s32", (3, 5), -2),
        ("smul.u32", (70000, 70000), 70000 * 70000 - 2**32),
        ("smulhi.u32", (2863311531, 6), 4),
        ("sshll.u32", (0x181, 24), -(2**31) + (1 << 24)),
        ("sshrl.u32", (-1, 28), 15),
        ("sshra.s32", (-16, 2), -4),
        ("sand.u32", (0b1100, 0b1010), 0b1000),
        ("sor.u32", (0b1100, 0b1010), 0b1110),
        ("smin.s32", (-1, 1), -1),
        ("scmp.lt.s32.totalorder", (-1, 1), 1),
        ("scmp.lt.u32.totalorder", (-1, 1), 0),
        ("pnand", (1, 1), 0),
        ("por", (1, None), 1),
        ("por", (0, None), None),
        ("pand", (0, None), 0),
        ("pneg", (0,), 1),
        ("scalar_select", (0, 7, 8), 8),
        ("vtos", (1,), None),
    ],
)
def test_computes_as_the_scalar_unit_does(operation, operands, expected):
    readers = [lambda values, x=x: x for x in operands]
    assert scalars.arithmetic(operation, readers)([]) == expected


def test_words_of_smem():
    words = np.arange(6, dtype=np.int32)
    assert machine._smem_words(words) == [0, 1, 2, 3, 4, 5]
    rows = machine._smem_words(words.reshape(2, 3))
    assert (rows[:3], rows[128:131]) == ([0, 1, 2], [3, 4, 5])
    # Four rows of bytes share a word.
    packed = machine._smem_words(np.arange(1, 11, dtype=np.int8).reshape(5, 2))
    assert [hex(x) for x in packed[:2]] == ["0x7050301", "0x8060402"]
    assert packed[128:130] == [9, 10]
    with pytest.raises(NotImplementedError, match="int8"):
        machine._smem_words(np.zeros(4, np.int8))


def test_what_is_no_listing_is_refused():
    with pytest.raises(ValueError, match="expected a listing"):
        listing.read("nothing")
