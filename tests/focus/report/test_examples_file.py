import json

import numpy as np
import pytest

from attnjax.focus.report.examples import Alignment, Image, Series, Tokens
from attnjax.focus.report.examples_file import read_examples
from tests.focus.report.shown import digit, examples_object, movement, review, translation

PNG = digit()["image"]


def read(tmp_path, value) -> object:
    (tmp_path / "focus_examples.json").write_text(json.dumps(value))
    return read_examples(tmp_path / "focus_examples.json")


def test_examples_of_every_kind(tmp_path):
    found = read(tmp_path, examples_object())
    assert found.problems == ()
    assert found.task == "sentiment of reviews"
    kinds = [type(x.shown) for x in found.examples]
    assert kinds == [Tokens, Tokens, Alignment, Image, Series]
    for example, given in zip(found.examples, examples_object()["examples"], strict=True):
        assert example.title == given["title"]
        for shown, map_given in zip(example.maps, given["maps"], strict=True):
            np.testing.assert_allclose(shown.weights, map_given["weights"])
    assert found.examples[0].curves["random"]["deletion"].shape == (11, 2)
    assert found.examples[1].curves is None
    assert found.faithful["gradient-weighted"].interval == (0.141, 0.177)
    assert found.faithful["attention pooling"].random_weights == 0.83


def test_a_series_may_be_given_moment_by_moment(tmp_path):
    turned = movement()
    turned["values"] = np.transpose(turned["values"]).tolist()
    one, other = read(tmp_path, {"version": 1, "examples": [movement(), turned]}).examples
    np.testing.assert_array_equal(one.shown.values, other.shown.values)
    assert one.shown.values.shape == (2, 140)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (review() | {"kind": "sound"}, "kind should be"),
        (review() | {"tokens": ["a", 1]}, "tokens should be a list of strings"),
        (review() | {"tokens": ["a"]}, "not (1,)"),
        (review() | {"maps": []}, "it has no maps"),
        (review() | {"maps": [{"name": "x", "weights": [[1]]}]}, "numbers and nulls only"),
        (review() | {"maps": [{"name": "x", "weights": "1"}]}, "should be lists of numbers"),
        (review() | {"faithful": 3}, "faithful should be an object"),
        (review() | {"faithful": {"x": {"deletion": [[1, 2, 3]]}}}, "should be pairs"),
        (translation() | {"source": []}, "source should be a list of strings"),
        (translation() | {"target": ["a"]}, "not (1, 11)"),
        (digit() | {"image": "https://example.org/a.png"}, "no data: address"),
        (digit() | {"image": "data:image/svg+xml;base64,PHN2Zy8+"}, "no data: address"),
        (digit() | {"image": PNG + '"onload="'}, "no data: address"),
        (digit() | {"maps": [{"weights": [[1], [1, 2]]}]}, "all of one length"),
        (movement() | {"names": ["one"]}, "1 names"),
        (movement() | {"values": []}, "values should be lists of numbers"),
        ("an example", "it is no object"),
    ],
)
def test_an_example_that_cannot_be_read_is_left_out(tmp_path, changed, reason):
    found = read(tmp_path, {"version": 1, "examples": [changed, digit()]})
    assert len(found.examples) == 1
    assert found.problems[0].startswith("focus_examples.json: example 1 was left out: ")
    assert reason in found.problems[0]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"version": 7, "examples": [digit()]}, "is of version 7"),
        ({"examples": [digit()]}, "is of version None"),
        ({"version": 1, "examples": {}}, "examples should be a list"),
        ({"version": 1, "faithful": [1]}, "faithful should be an object"),
        ({"version": 1, "faithful": {"x": 1}}, "faithful numbers of 'x'"),
        ({"version": 1, "faithful": {"x": {"luck": 1}}}, "not known here: luck"),
        ([1], "should hold a JSON object"),
    ],
)
def test_a_broken_file_is_told(tmp_path, value, problem):
    found = read(tmp_path, value)
    assert found.examples == ()
    assert any(problem in sentence for sentence in found.problems)


def test_a_file_that_was_cut_off_is_told(tmp_path):
    path = tmp_path / "focus_examples.json"
    path.write_text(json.dumps(examples_object())[:300])
    assert "focus_examples.json cannot be read" in read_examples(path).problems[0]
    path.unlink()
    assert read_examples(path).problems == ("focus_examples.json is missing",)


def test_numbers_that_are_not_finite(tmp_path):
    row = {"margin": None, "deletion": float("nan"), "interval": [None, 1], "insertion": 0.5}
    (found,) = read(tmp_path, {"version": 1, "faithful": {"x": row}}).faithful.values()
    assert (found.margin, found.deletion, found.interval) == (None, None, None)
    assert found.insertion == 0.5
