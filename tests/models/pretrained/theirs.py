"""What the transformers library computes with the tiny models."""

import logging

import torch
import transformers

from tests.models.pretrained.tiny import (
    CONFIGS,
    LENGTHS,
    SOURCE,
    SOURCE_LENGTHS,
    T,
    segments,
    tokens,
)

logging.getLogger("transformers").setLevel(logging.ERROR)
transformers.utils.logging.disable_progress_bar()


def make(name):
    """Returns a model of theirs with new weights."""
    fields = dict(CONFIGS[name])
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    return _class(name)._from_config(config, **_HOW)


def load(name, folder, **options):
    """Returns the model of theirs in a folder."""
    return _class(name).from_pretrained(folder, **_HOW, **options).eval()


def compute(model, name):
    """Returns what a model of theirs computes, as `tiny.compute`."""
    kind, ids = CONFIGS[name]["model_type"], torch.tensor(tokens(0, T))
    with torch.no_grad():
        if kind == "t5":
            hidden = torch.arange(SOURCE) < torch.tensor(SOURCE_LENGTHS)[:, None]
            source = torch.tensor(tokens(1, SOURCE))
            out = model(input_ids=source, attention_mask=hidden, decoder_input_ids=ids)
        elif kind == "bert":
            padding = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
            kinds = torch.tensor(segments())
            out = model(input_ids=ids, attention_mask=padding, token_type_ids=kinds)
        else:
            out = model(input_ids=ids)
    if name == "bert-span":
        return torch.stack((out.start_logits, out.end_logits), dim=-1).numpy()
    return (out.last_hidden_state if name == "bert" else out.logits).float().numpy()


def _class(name):
    return getattr(transformers, CONFIGS[name]["architectures"][0])


# The plain implementations: others need sizes that are multiples of 16, or are for speed.
_HOW = {"attn_implementation": "eager", "experts_implementation": "eager"}
