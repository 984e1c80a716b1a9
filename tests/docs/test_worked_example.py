"""The worked example prints what its page says, and both are what the formulas give."""

import contextlib
import io
import math
import re
from pathlib import Path

import numpy as np
import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "worked_example.md").read_text()
CODE = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, flags=re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d+")


def _numbers(text):
    return [float(number) for number in NUMBER.findall(text)]


def test_code_prints_the_numbers_of_the_page():
    assert len(CODE) == PAGE.count("```python") == 3
    namespace = {}
    for code, shown in CODE:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        got, want = printed.getvalue(), shown
        assert NUMBER.sub("#", got) == NUMBER.sub("#", want)
        # The last digit may round either way.
        np.testing.assert_allclose(_numbers(got), _numbers(want), rtol=0, atol=1.01e-4)


def _softmax(scores):
    weights = np.exp(scores)
    return weights / weights.sum(-1, keepdims=True)


WEIGHTS = _softmax(np.where(np.eye(3), 1 / (1 + math.exp(-1)), 0.5))
ENTROPY = -np.sum(WEIGHTS[0] * np.log(WEIGHTS[0]))


def test_numbers_by_hand():
    first, second, third = (_numbers(shown) for _, shown in CODE)
    np.testing.assert_allclose(first, [*WEIGHTS.ravel(), *[ENTROPY] * 3], atol=5.1e-5)
    table = re.findall(r"^\| (?:cat|dog|pig) \|((?: \d\.\d+ \|)+)$", PAGE, flags=re.MULTILINE)
    np.testing.assert_allclose([_numbers(row) for row in table], WEIGHTS, atol=5.1e-5)

    rows = np.reshape(second, (3, 2, 4))  # length, then three weights, for both activations
    for length, by_sigmoid, plain in zip(
        rows[:, 0, 0], rows[:, 0, 1:], rows[:, 1, 1:], strict=True
    ):
        dots = np.array([length**2, 0, 0])
        np.testing.assert_allclose(by_sigmoid, _softmax(1 / (1 + np.exp(-dots))), atol=5.1e-5)
        np.testing.assert_allclose(plain, _softmax(dots), atol=5.1e-5)

    scores = 1 / (1 + np.exp(-(np.eye(3) + np.array([0, 2, 0]) - 1)))
    np.testing.assert_allclose(np.reshape(third, (3, 3)), _softmax(scores), atol=5.1e-5)


@pytest.mark.parametrize(
    ("shown", "value"),
    [
        ("e^-1) = {}", 1 / (1 + math.exp(-1))),
        ("e^0.7311 = {}", math.exp(1 / (1 + math.exp(-1)))),
        ("e^0.5 = {}", math.exp(0.5)),
        ("2 * 1.6487 = {}", math.exp(1 / (1 + math.exp(-1))) + 2 * math.exp(0.5)),
        ("2 * 0.3068 ln 0.3068) = {}` nats", ENTROPY),
        ("ln 3 = {}", math.log(3)),
        ("`e = {}`", math.e),
        ("2 e^0.5) = {}`", math.e / (math.e + 2 * math.exp(0.5))),
        ("`sigmoid(0 - 1) = {}`", 1 / (1 + math.e)),
        ("and `{}` over", math.exp(1 / (1 + math.e))),
        (
            "their sum `{}`",
            math.exp(0.5) + math.exp(1 / (1 + math.exp(-1))) + math.exp(1 / (1 + math.e)),
        ),
    ],
)
def test_steps_by_hand(shown, value):
    assert shown.format(f"{value:.4f}") in " ".join(PAGE.split())
