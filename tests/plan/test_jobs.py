import pytest

import attnjax
from attnjax.plan.attention_call import AttentionCall, parse_mask, parse_shape
from attnjax.plan.language_training import Training
from attnjax.sharding.laying import parse_mesh


def test_masks():
    assert str(parse_mask("causal")) == str(attnjax.Causal())
    assert str(parse_mask("causal:4")) == str(attnjax.Causal(4))
    both = parse_mask("window:1023:0 & strided:4")
    assert str(both) == str(attnjax.Window(1023, 0) & attnjax.Strided(4))


@pytest.mark.parametrize("text", ["", "casual", "window", "window:1", "strided:x", "causal&"])
def test_wrong_masks_are_refused(text):
    with pytest.raises(ValueError, match="mask: expected some of full, causal:N"):
        parse_mask(text)


def test_shapes():
    sizes = parse_shape("8,32768,16,4,128")
    assert AttentionCall(**sizes).heads == 16
    for text in ("8,32768,16,4", "a,b,c,d,e", ""):
        with pytest.raises(ValueError, match="expected five sizes"):
            parse_shape(text)
    with pytest.raises(ValueError, match="heads: expected at least 1"):
        AttentionCall(**parse_shape("8,1024,0,1,64"))


def test_trainings_are_checked():
    with pytest.raises(ValueError, match=r"model: expected one of lm-tiny, .*'gpt'"):
        Training("gpt", 8, 128)
    with pytest.raises(ValueError, match="batch: expected a multiple of accumulate=3"):
        Training("lm-tiny", 8, 128, accumulate=3)
    with pytest.raises(ValueError, match="sequence: expected at least 1"):
        Training("lm-tiny", 8, 0)


def test_changes_of_a_training_need_less_memory_for_the_same_batch():
    mesh = parse_mesh("fsdp=4")
    training = Training("lm-tiny", 16, 1024, remat="none")
    texts = [text for _, text, _ in training.changes(mesh)]
    assert texts == [
        *("--remat dots", "--remat full", "--accumulate 2", "--accumulate 4"),
        "--moments bfloat16",
    ]
    assert all(job.batch == 16 and job.takes(mesh) for _, _, job in training.changes(mesh))
    done = Training("lm-tiny", 4, 1024, remat="full", moments="bfloat16")
    assert [*done.changes(mesh)] == []
