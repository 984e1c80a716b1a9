"""What pictures are made of: colours, scales, thinning, lines, heat maps, maps of examples."""

import base64
import dataclasses
import re
import struct
import zlib

import numpy as np
import pytest

from attnjax.focus.records import read_records
from attnjax.focus.report import colours
from attnjax.focus.report.charts import chart
from attnjax.focus.report.examples import Alignment, Example, Image, Map, Series, Tokens
from attnjax.focus.report.heat import chosen_heads, heat_maps, shared_scales
from attnjax.focus.report.pictures import pictures
from attnjax.focus.report.runs import Line
from attnjax.focus.report.scales import Scale, clip, scale_of, text
from attnjax.focus.report.statistics import short_names, statistics
from attnjax.focus.report.thinning import Limits, extremes, some
from tests.focus.report.runs import focus_rows, write_lines

NAN = float("nan")


def pixels(address: str) -> np.ndarray:
    """RGBA, uint8 [h, w, 4], of a PNG with a palette and no filters."""
    data, at, chunks = base64.b64decode(address.partition(",")[2]), 8, {}
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(
            name + body
        )
        chunks[name] = body
        at += 12 + size
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    palette = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
    alpha = np.frombuffer(chunks[b"tRNS"], np.uint8)
    return np.concatenate([palette[rows[:, 1:]], alpha[rows[:, 1:], None]], axis=2)


def lightness(colour) -> float:
    parts = [x / 255 for x in colour]
    linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def of_hex(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def test_png_holds_the_cells():
    places = np.array([[0.0, 0.5, 1.0], [NAN, 2.0, -1.0]])
    found = pixels(colours.png(colours.indices(places), colours.viridis()))
    assert found.shape == (2, 3, 4)
    np.testing.assert_array_equal(found[0, 0], [0x44, 0x01, 0x54, 255])
    np.testing.assert_array_equal(found[0, 2], [0xFD, 0xE7, 0x25, 255])
    np.testing.assert_array_equal(found[1, 1], found[0, 2])  # beyond the scale: its end
    np.testing.assert_array_equal(found[1, 2], found[0, 0])
    assert found[1, 0, 3] == 0  # the pattern beneath shows


def test_colours_rise_in_lightness_so_that_the_colour_blind_can_read_them():
    light = [lightness(x) for x in colours.viridis()]
    assert np.all(np.diff(light) > -1e-3) and light[-1] - light[0] > 0.6


@pytest.mark.parametrize(("dark", "ink"), [(False, "#1f2933"), (True, "#e3e8ed")])
def test_words_can_be_read_on_every_shade(dark, ink):
    for colour in colours.shades(dark=dark).values():
        ends = sorted([lightness(of_hex(ink)), lightness(of_hex(colour))])
        assert (ends[1] + 0.05) / (ends[0] + 0.05) >= 4.5


def test_shade_classes():
    shares = (0, 0.04, 1, -1, -0.5, NAN, 7)
    assert [colours.shade_class(x) for x in shares] == ["p0", "p0", "p10", "n10", "n5", "na", "p10"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (1234.6, "1,235"),
        (0.12345, "0.123"),
        (12.0, "12"),
        (-0.5, "-0.5"),
        (99.96, "100"),
        (1.5e7, "1.50e7"),
        (2e-5, "2.00e-5"),
        (NAN, "\u2013"),
        (None, "\u2013"),
    ],
)
def test_numbers_as_text(value, expected):
    assert text(value) == expected


def test_scales():
    np.testing.assert_allclose(Scale(10, 20).place(np.array([10, 15, 20])), [0, 0.5, 1])
    found = scale_of(np.array([0.01, 0.02, 0.03, 100.0, NAN]))
    assert found.log
    np.testing.assert_allclose(found.place(np.array([0.01, 1.0, 100.0, 0.0])), [0, 0.5, 1, NAN])
    assert scale_of(np.array([3.0, 3.0])) == Scale(1.5, 4.5)
    assert scale_of(np.array([NAN])) == Scale(0, 1)
    assert scale_of(np.array([0.2, 1.4]), fixed=(0, 1)) == Scale(0, 1.4)
    assert [label for _, label in Scale(0, 1).ticks()] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert [label for _, label in Scale(0.05, 200, log=True).ticks()] == ["0.1", "1", "10", "100"]
    labels = [label for _, label in Scale(123.6, 125.1).ticks(4)]
    assert labels == ["124.0", "124.5", "125.0"]
    assert clip("abcdef", 4) == "abc\u2026" and clip("abcd", 4) == "abcd"


def test_thinning_keeps_spikes_gaps_and_ends():
    values = np.sin(np.arange(50_000) / 900)
    values[31_234], values[20_001], values[777] = 99, -99, NAN
    chosen = extremes(values, 100)
    assert len(chosen) <= 104
    assert {0, 777, 20_001, 31_234, 49_999} <= set(chosen.tolist())
    np.testing.assert_array_equal(extremes(values[:50], 100), np.arange(50))
    found = some(1000, 5)
    assert len(found) == 5 and found[0] == 0 and found[-1] == 999
    assert np.ptp(np.diff(found)) <= 1
    assert some(3, 5).tolist() == [0, 1, 2]


def test_limits_get_tighter():
    found = list(Limits().ever_tighter())
    assert found[0] == Limits() and found[1].cells == Limits().cells // 2
    assert all(value <= 16 for value in dataclasses.astuple(found[-1]))


def test_a_gap_in_a_line_shows():
    line = Line(np.arange(6) * 10, np.array([1.0, 2.0, NAN, 4.0, NAN, 3.0]))
    found = chart("loss", {"training": ("train", line)}, points=100, marks=[20, 900])
    (drawn,) = found.lines
    assert drawn.path == "M0 1000L200 666.7"
    assert drawn.dots.count("M") == 4
    assert found.marks == (40.0,)  # the other one is beyond the line
    assert "2 values not finite" in found.summary
    assert "lowest 1 at step 0, highest 4 at step 30" in found.summary
    assert found.header == ("step", "training")
    assert found.table[2] == ("20", "\u2013")


def test_a_line_without_any_finite_value():
    line = Line(np.array([5]), np.array([NAN]))
    found = chart("loss", {"training": ("train", line)}, points=100)
    assert found.lines[0].path == "" and "no finite value" in found.summary


@pytest.fixture
def records(tmp_path):
    write_lines(tmp_path / "focus.jsonl", focus_rows(layers=3, heads=4, steps=20, every=50))
    return read_records(tmp_path / "focus.jsonl")


def test_numbers_behind_a_heat_map_are_those_recorded(records):
    found = heat_maps(records, Limits(), shared_scales([records]))
    assert [x.statistic.name for x in found.panels] == [
        x.name for x in statistics(records.heads.values)
    ]
    for name, about in found.data["statistics"].items():
        levels = np.frombuffer(base64.b64decode(about["levels"]), "<u2").astype(float)
        places = np.where(levels > 65534, NAN, levels / 65534)
        low, high = about["low"], about["high"]
        ratio = high / low if about["log"] else 1.0
        values = low * ratio**places if about["log"] else low + (high - low) * places
        expected = records.heads.values[name]
        np.testing.assert_allclose(values.reshape(expected.shape), expected, atol=1e-4 * high)


def test_marks_stand_where_the_events_were(records):
    found = heat_maps(records, Limits(), shared_scales([records]))
    share = next(x for x in found.panels if x.statistic.name == "share")
    height = found.data["rowHeight"]
    assert found.height == 12 * height
    sink, growth, remedy, collapse = share.marks  # what is the picture's own is on top
    assert [x.kind for x in share.marks] == ["other", "other", "remedy", "own"]
    assert collapse.middle == 5.5 * height and collapse.right == 100
    assert collapse.left == pytest.approx(100 * 9.5 / 20)  # step 500 is the tenth of 20
    assert sink.right == pytest.approx(100 * (333 / 50 - 0.5) / 20, abs=0.01)
    assert (remedy.top, remedy.height) == (4 * height, 4 * height)  # the whole module
    assert growth.middle == 6.5 * height
    assert [x.label for x in found.bands] == ["layers.0", "layers.1", "layers.2"]


def test_what_does_not_fit_is_said(records):
    limits = Limits(cells=9 * 5 * 4, heads=5, events=2)
    found = heat_maps(records, limits, shared_scales([records]))
    assert len(found.data["steps"]) == 4 and found.data["steps"][-1] == 1000
    assert len(found.notes) == 3
    kept = [records.heads.columns[i] for i in chosen_heads(records, 5)]
    assert ("encoder.layers.1.attention", 2) in kept and ("encoder.layers.2.attention", 3) in kept


def test_short_names():
    assert short_names(["a.b.0.x", "a.b.1.x"]) == {"a.b.0.x": "b.0", "a.b.1.x": "b.1"}
    assert short_names(["a.self", "a.cross"]) == {"a.self": "self", "a.cross": "cross"}
    assert short_names(["one.two"]) == {"one.two": "one.two"}
    stack = ["pooling", "reader.stack.layers.0.attention", "reader.stack.layers.1.attention"]
    assert list(short_names(stack).values()) == ["pooling", "layers.0", "layers.1"]
    both = [f"model.decoder.layers.{i}.{x}" for i in (0, 1) for x in ("self", "cross")]
    assert list(short_names(both).values()) == [
        "layers.0.self",
        "layers.0.cross",
        "layers.1.self",
        "layers.1.cross",
    ]
    assert short_names(["a.b", "a.b.c"]) == {"a.b": "a.b", "a.b.c": "c"}
    assert short_names(["a.0.x", "a.0.y"]) == {"a.0.x": "x", "a.0.y": "y"}


def drawn(shown, weights) -> object:
    (found,) = pictures(Example("t", shown, (Map("m", "mod", 3, np.asarray(weights, float)),)))
    return found


def test_tokens_are_shaded_by_their_share_of_the_largest_weight():
    found = drawn(Tokens(("a", "b", "c", "d")), [0.5, 0.25, NAN, 0.0])
    assert found.tokens == (("a", "p10"), ("b", "p5"), ("c", "na"), ("d", "p0"))
    assert found.title == "m, mod, head 3" and found.largest == "0.5" and not found.signed
    assert [row[0] for row in found.table] == ["a", "b", "d"]
    assert drawn(Tokens(("a", "b")), [-2, 1]).tokens == (("a", "n10"), ("b", "p5"))
    assert drawn(Tokens(("a",)), [0]).tokens == (("a", "p0"),)
    assert drawn(Tokens(("a",)), [NAN]).largest == "\u2013"


def test_an_alignment_has_a_row_for_each_target_token():
    found = drawn(Alignment(("x", "y", "z"), ("p", "q")), [[1, 0, 0], [0.2, 0.3, 0.5]])
    assert pixels(found.picture).shape == (2, 3, 4)
    np.testing.assert_array_equal(pixels(found.picture)[0, 0, :3], [0xFD, 0xE7, 0x25])
    assert found.table == (("p", "x (1), y (0), z (0)"), ("q", "z (0.5), y (0.3), x (0.2)"))
    assert [word for _, word in found.source.labels] == ["x", "y", "z"]
    assert found.target.length == 2 * found.source.length // 3


def test_an_overlay_is_clear_where_the_weight_is_small():
    found = drawn(Image("data:image/png;base64,AA=="), [[0, 1], [0.5, NAN]])
    alpha = pixels(found.picture)[..., 3]
    assert alpha[0, 0] == 0 and alpha[1, 1] == 0 and alpha[0, 1] > alpha[1, 0] > 90
    assert found.table[0] == ("1", "2", "1")


def test_a_series_has_a_line_for_each_channel():
    values = np.array([[0.0, 1.0, NAN, 1.0], [5.0, 5.0, 5.0, 5.0]])
    found = drawn(Series(values, ("up", "flat")), [0, 0, 1, 0])
    assert [x[0] for x in found.channels] == ["up", "flat"]
    assert re.findall("[ML]", found.channels[0][1]) == ["M", "L", "M"]  # NaN is a gap
    assert pixels(found.picture).shape == (1, 4, 4)
    assert found.table[0][:2] == ("3", "1")


def test_a_long_series_keeps_its_strongest_moment():
    weights = np.zeros(30_000)
    weights[12_345] = 1
    found = drawn(Series(np.zeros((1, 30_000)), ("x",)), weights)
    row = pixels(found.picture)[0]
    assert len(row) == 1200 and (row[:, 2] < 200).sum() == 1
    assert "30,000 moments share 1,200 columns" in found.notes[0]
