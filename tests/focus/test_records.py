import json

import numpy as np
import pytest

from attnjax.focus.records import read_records
from tests.focus.report.runs import focus_rows, layout, write_lines

NAN = float("nan")


def heads(step: int, **modules) -> dict:
    return {"kind": "heads", "step": step, "modules": modules}


def read(tmp_path, rows: list[dict]):
    write_lines(tmp_path / "focus.jsonl", rows)
    return read_records(tmp_path / "focus.jsonl")


def test_a_whole_file(tmp_path):
    rows = focus_rows(layers=3, heads=4, steps=20, every=50)
    found = read(tmp_path, rows)
    assert found.problems == ()
    assert found.layout.every == 50
    modules = [f"encoder.layers.{layer}.attention" for layer in range(3)]
    assert found.layout.columns == tuple((name, head) for name in modules for head in range(4))
    np.testing.assert_array_equal(found.heads.steps, range(50, 1001, 50))
    for name, values in found.heads.values.items():
        expected = [
            [x for module in row["modules"].values() for x in module[name]]
            for row in rows
            if row["kind"] == "heads"
        ]
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, np.array(expected, float), rtol=1e-6)
    assert np.isnan(found.heads.values["max_logit"]).sum() == 1
    assert [(x.step, x.what, x.head, x.over) for x in found.warnings] == [
        (250, "sink", 3, 333),
        (500, "entropy_collapse", 1, None),
        (600, "logit_growth", 2, None),
    ]
    assert found.warnings[2].value is None
    (remedy,) = found.remedies
    assert (remedy.step, remedy.head, remedy.what, remedy.strength) == (650, None, "qk_clip", 0.8)
    assert [x.step for x in found.events] == [250, 500, 600, 650]


def test_wherever_it_was_cut_off_the_rest_is_read(tmp_path):
    path = tmp_path / "focus.jsonl"
    write_lines(path, focus_rows(layers=2, heads=2, steps=5, every=10))
    whole, steps = path.read_bytes(), read_records(path).heads.steps
    lines = whole.split(b"\n")
    for end in range(0, len(whole), 97):
        path.write_bytes(whole[:end])
        found = read_records(path)
        np.testing.assert_array_equal(found.heads.steps, steps[: len(found.heads.steps)])
        last = whole[:end].rpartition(b"\n")[2]
        is_cut = last not in (b"", *lines)
        assert any("cut off" in sentence for sentence in found.problems) == is_cut


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([], "has no layout line"),
        ([layout({"a": 2})], "has no statistics of heads"),
        ([heads(1, a={"share": [1, 2]})], "has no layout line"),
        ([layout({"a": 2}, version=2)], "is of version 2, and only version 1 is understood"),
        ([layout({"a": 2}), {"kind": "new"}], "a line of an unknown kind was left out"),
        ([layout({"a": 2}), {"kind": "heads", "modules": {}}], "a heads line without a step"),
        ([layout({"a": 2}), heads(True)], "a heads line without a step"),
        ([layout({"a": 2}), heads(1, b={"share": [1, 2]})], "the layout does not name"),
        ([layout({"a": 2}), heads(1, a={"share": [1]})], "should have 2 numbers"),
        ([layout({"a": 2}), heads(1, a={"share": ["x", 1]})], "no list of numbers"),
        ([layout({"a": 2}), heads(1, a={"share": [1, True]})], "no list of numbers"),
        ([layout({"a": 2}), heads(1, a=None)], "no list of numbers"),
        ([layout({"a": 2}), heads(1, a={}), heads(1, a={})], "a step stands twice"),
        ([layout({"a": 0})], "how many heads"),
        ([layout({"a": 2}), {"kind": "warning", "step": 1, "module": "a"}], "without module, head"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, rows, problem):
    assert any(problem in sentence for sentence in read(tmp_path, rows).problems)


def test_a_missing_file_is_told(tmp_path):
    found = read_records(tmp_path / "focus.jsonl")
    assert found.problems == ("focus.jsonl is missing: the run was not watched (--focus)",)
    assert found.heads.steps.size == 0 and found.layout.columns == ()


def test_what_is_no_file_is_told(tmp_path):
    (tmp_path / "focus.jsonl").mkdir()
    assert "cannot be read" in read_records(tmp_path / "focus.jsonl").problems[0]


def test_nothing_of_another_version_is_shown(tmp_path):
    found = read(tmp_path, [layout({"a": 1}, version=9), heads(1, a={"share": [0.5]})])
    assert found.heads.steps.size == 0 and found.layout.columns == ()


def test_without_a_layout_sizes_come_from_the_numbers(tmp_path):
    found = read(tmp_path, [heads(1, a={"share": [1, 2, 3]}), heads(2, b={"share": [4]})])
    assert found.layout.modules == {"a": 3, "b": 1}
    np.testing.assert_allclose(found.heads.values["share"], [[1, 2, 3, NAN], [NAN, NAN, NAN, 4]])


def test_the_later_of_two_rows_counts_and_steps_rise(tmp_path):
    rows = [heads(20, a={"x": [1]}), heads(10, a={"x": [2]}), heads(20, a={"x": [3]})]
    found = read(tmp_path, [layout({"a": 1}), *rows])
    np.testing.assert_array_equal(found.heads.steps, [10, 20])
    np.testing.assert_allclose(found.heads.values["x"], [[2], [3]])


def test_what_is_not_finite_is_no_number(tmp_path):
    values = [None, NAN, float("inf"), 10**400, 1e39, -1e38]
    found = read(tmp_path, [layout({"a": 6}), heads(1, a={"x": values})])
    np.testing.assert_allclose(found.heads.values["x"], [[NAN, NAN, NAN, NAN, NAN, -1e38]])


def test_lines_of_rubbish_are_counted(tmp_path):
    path = tmp_path / "focus.jsonl"
    row = json.dumps(heads(1, a={"x": [1]}))
    path.write_bytes(b"\xff\xfe\n[1]\n" + json.dumps(layout({"a": 1})).encode() + b"\n")
    with path.open("a") as file:
        file.write(f"{'[' * 5000}\n{row}\n")
    found = read_records(path)
    assert found.problems == ("focus.jsonl: a line is no JSON object and was left out (3 times)",)
    np.testing.assert_allclose(found.heads.values["x"], [[1]])


def test_a_warning_may_begin_again(tmp_path):
    one = {"module": "a", "head": 0, "what": "sink"}
    kinds = [("warning", 1), ("over", 3), ("warning", 5)]
    rows = [{"kind": kind, "step": step, **one} for kind, step in kinds]
    rows.append({"kind": "over", "step": 7, **one, "head": 1})  # of another head
    found = read(tmp_path, [layout({"a": 2}), *rows])
    assert [(x.step, x.over) for x in found.warnings] == [(1, 3), (5, None)]
