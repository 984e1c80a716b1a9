import numpy as np
import pytest

from attnjax.focus.report.examples import Example, Faithful, Map, Tokens
from attnjax.focus.report.faithfulness import UNMEASURED, example_charts, verdict


@pytest.mark.parametrize(
    ("found", "tone", "word"),
    [
        (None, "unknown", "Not measured"),
        (Faithful(deletion=0.5), "unknown", "Not measured"),
        (Faithful(margin=0.1, interval=(0.05, 0.15)), "good", "Better than chance"),
        (Faithful(margin=0.1, interval=(-0.05, 0.25)), "bad", "No better than chance"),
        (Faithful(margin=0.0, interval=(0.0, 0.0)), "bad", "No better than chance"),
        (Faithful(margin=-0.1, interval=(-0.2, -0.05)), "bad", "Worse than chance"),
        (Faithful(margin=0.1), "doubtful", "No interval"),
        (Faithful(random_weights=0.1), "doubtful", "Not tested against chance"),
        (
            Faithful(margin=0.1, interval=(0.05, 0.15), random_weights=0.9),
            "doubtful",
            "Better than chance; hardly depends on what was learned",
        ),
    ],
)
def test_verdicts(found, tone, word):
    judged = verdict(found)
    assert (judged.tone, judged.word) == (tone, word)
    assert (judged is UNMEASURED) == (tone == "unknown")


def test_low_agreement_is_said():
    found = Faithful(margin=0.1, interval=(0.05, 0.15), agreement_gradients=0.1)
    assert "hardly agrees with integrated gradients (rank correlation 0.1)" in verdict(found).why
    assert "leaving out" not in verdict(found).why


def test_every_curve_stands_beside_chance():
    points = np.array([[0.0, 0.9], [0.5, 0.4], [1.0, 0.1]])
    example = Example(
        "t",
        Tokens(("a",)),
        (Map("m", None, None, np.ones(1)),),
        curves={"random": {"deletion": points}, "m": {"deletion": points[::-1]}},
    )
    (found,) = example_charts(example, points=100)
    assert [(x.label, x.style) for x in found.lines] == [("m", "method0"), ("random", "chance")]
    assert found.lines[0].path == found.lines[1].path  # in the order of the shares
    assert found.header == ("share", "m", "random")
    assert example_charts(Example("t", Tokens(("a",)), ()), points=100) == ()
