"""Small dialogues about colours in the format of dialog-bAbI, which take seconds to learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np

COLOURS = (
    *("red", "green", "blue", "pink", "grey", "black", "white", "brown", "purple", "orange"),
    *("yellow", "beige", "azure", "coral", "ivory", "olive", "plum", "rose", "sand", "tan"),
)
UNSEEN = ("mauve", "teal", "ochre")
GREETINGS = ("hi", "hello there", "good day")
LIKES = ("i like {}", "{} please", "it should be {}")


def dialogue(colour: str, rng: np.random.Generator) -> str:
    lines = [
        f"{rng.choice(GREETINGS)}\twhat do you like",
        f"{rng.choice(LIKES).format(colour)}\tapi_call {colour}",
        f"{colour}_shirt R_colour {colour}",
        f"{colour}_shirt R_shop {colour}_shirt_shop",
        f"<SILENCE>\thow about {colour}_shirt",
        f"yes\tit is at {colour}_shirt_shop",
    ]
    return "\n".join(f"{number} {line}" for number, line in enumerate(lines, 1))


def write_dialogues(folder: Path) -> dict[str, Path]:
    """Writes train, validation, test, oov (with colours of its own), candidates and knowledge."""
    paths = {}
    sizes = {"train": 100, "validation": 12, "test": 16, "oov": 12}
    for seed, (name, count) in enumerate(sizes.items()):
        rng = np.random.default_rng(seed)
        colours = UNSEEN if name == "oov" else COLOURS
        text = "\n\n".join(dialogue(str(rng.choice(colours)), rng) for _ in range(count))
        paths[name] = folder / f"{name}.txt"
        paths[name].write_text(text + "\n", encoding="utf-8")
    answers = ["what do you like"]
    rows = []
    for colour in (*COLOURS, *UNSEEN):
        answers += [f"api_call {colour}", f"how about {colour}_shirt"]
        answers.append(f"it is at {colour}_shirt_shop")
        rows += [
            f"1 {colour}_shirt R_colour\t{colour}",
            f"1 {colour}_shirt R_shop\t{colour}_shirt_shop",
        ]
    for name, lines in (("candidates", [f"1 {a}" for a in answers]), ("knowledge", rows)):
        paths[name] = folder / f"{name}.txt"
        paths[name].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths


def data_options(paths: dict[str, Path]) -> list[str]:
    """The options that name these files."""
    options = ["--data", str(paths["train"])]
    for name, path in paths.items():
        if name != "train":
            options += [f"--data.{name}", str(path)]
    return options
