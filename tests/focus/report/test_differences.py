import numpy as np
import pytest

from attnjax.focus.records import read_records
from attnjax.focus.report.differences import config_differences, head_differences
from attnjax.focus.report.statistics import statistics
from tests.focus.report.runs import layout, write_lines


def records(path, modules: dict[str, list[float]]):
    rows = {name: {"share": values} for name, values in modules.items()}
    heads = {"kind": "heads", "step": 10, "modules": rows}
    write_lines(path, [layout({name: len(x) for name, x in modules.items()}), heads])
    return read_records(path)


def test_heads_are_matched_by_name_and_the_largest_differences_stay(tmp_path):
    a = records(tmp_path / "a", {"x": [0.1, 0.2, 0.3], "y": [0.4]})
    b = records(tmp_path / "b", {"z": [9.0], "x": [0.15, 0.9, 0.31]})
    found = head_differences(a, b, statistics(["share"]), most=2)
    assert [(module, head) for module, _, head, _ in found.rows] == [("x", 0), ("x", 1)]
    values = [row["share"] for *_, row in found.rows]
    np.testing.assert_allclose(values, [[0.1, 0.15, 0.05], [0.2, 0.9, 0.7]], rtol=1e-5)
    assert found.notes == (
        "1 head is in run A only: y.",
        "1 head is in run B only: z.",
        "The 2 heads of 3 that differ most are shown.",
    )
    assert found.steps == (10, 10)


def test_what_only_one_run_recorded_differs_by_nothing_known(tmp_path):
    a, b = records(tmp_path / "a", {"x": [0.1]}), records(tmp_path / "b", {"x": [None]})
    (row,) = head_differences(a, b, statistics(["share", "keys"]), most=5).rows
    np.testing.assert_allclose(row[3]["share"], [0.1, np.nan, np.nan], rtol=1e-5)
    np.testing.assert_allclose(row[3]["keys"], [np.nan] * 3)


def test_runs_without_a_head_in_common(tmp_path):
    a, b = records(tmp_path / "a", {"x": [0.1]}), records(tmp_path / "b", {"y": [0.1]})
    assert head_differences(a, b, statistics(["share"]), most=5) is None


@pytest.mark.parametrize("most", [1, 9])
def test_fields_that_differ(most):
    a = {"task": {"n": 1, "same": [1, 2]}, "only": {}, "list": [1]}
    b = {"task": {"n": 1.5, "same": [1, 2]}, "list": [2]}
    rows, more = config_differences(a, b, most)
    expected = [
        ("list", "[1]", "[2]"),
        ("only", "{}", "(absent)"),
        ("task.n", "1", "1.5"),
    ]
    assert (rows, more) == (expected[:most], max(0, 3 - most))
    assert config_differences(None, None, most) == ([], 0)
