import pytest

import attnjax
from attnjax.plan.attention_call import AttentionCall, parse_mask, parse_shape
from attnjax.plan.language_training import Training
from attnjax.plan.workload import parse_mesh


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        (None, (1, 16, 1, 1)),
        ("data=2,fsdp=8", (2, 8, 1, 1)),
        ("seq=4,data=-1", (4, 1, 1, 4)),
        ("data=1, fsdp=2, model=4, seq=2", (1, 2, 4, 2)),
    ],
)
def test_meshes(text, sizes):
    assert tuple(parse_mesh(text, 16).values()) == sizes
    assert tuple(parse_mesh(text, 16)) == ("data", "fsdp", "model", "seq")


@pytest.mark.parametrize("text", ["data=3", "rows=16", "data", "data=0,fsdp=-1", "data=-1,seq=-1"])
def test_wrong_meshes_are_refused(text):
    with pytest.raises(ValueError, match="mesh: expected"):
        parse_mesh(text, 16)


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
    mesh = parse_mesh("fsdp=4", 4)
    training = Training("lm-tiny", 16, 1024, remat="none")
    texts = [text for _, text, _ in training.changes(mesh)]
    assert texts == [
        *("--remat dots", "--remat full", "--accumulate 2", "--accumulate 4"),
        "--moments bfloat16",
    ]
    assert all(job.batch == 16 and job.takes(mesh) for _, _, job in training.changes(mesh))
    done = Training("lm-tiny", 4, 1024, remat="full", moments="bfloat16")
    assert [*done.changes(mesh)] == []
