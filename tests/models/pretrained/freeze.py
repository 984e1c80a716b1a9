"""Makes frozen.npz: `python -m tests.models.pretrained.freeze`; needs transformers and torch.

For each tiny model it holds `config.json` as the transformers library writes it, names and shapes
of the tensors, and outputs at a few positions. The weights are not kept: `tiny.values` makes them.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy

from tests.models.pretrained import theirs, tiny


def freeze(name):
    """Returns config, shapes and outputs of a tiny model."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        theirs.make(name).save_pretrained(folder)
        saved = safetensors.numpy.load_file(folder / "model.safetensors")
        fields = json.loads((folder / "config.json").read_text())
        shapes = {name: x.shape for name, x in sorted(saved.items())}
        tiny.write(folder, fields, shapes)
        out = theirs.compute(theirs.load(name, folder), name)
    return fields, shapes, tiny.seen(name, out)


def main():
    """Writes the file."""
    arrays, texts = {}, {}
    for name in tiny.CONFIGS:
        fields, shapes, arrays[name] = freeze(name)
        texts[name] = {"config": fields, "shapes": shapes}
    text = np.frombuffer(json.dumps(texts).encode(), np.uint8)
    np.savez_compressed(tiny.FROZEN, texts=text, **arrays)


if __name__ == "__main__":
    main()
