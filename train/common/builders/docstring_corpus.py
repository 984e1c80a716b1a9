"""Real English on every machine: sentences of NumPy's and SciPy's docstrings, by sub-package.

Both libraries are jax's own dependencies, so the corpus needs no network. It depends on their
versions; the data fingerprint in a run's manifest says which corpus it was.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

SUBPACKAGES: dict[str, tuple[str, ...]] = {
    "numpy": ("numpy",),
    "numpy.ma": ("numpy.ma",),
    "numpy.polynomial": (
        "numpy.polynomial",
        "numpy.polynomial.polynomial",
        "numpy.polynomial.chebyshev",
        "numpy.polynomial.hermite",
        "numpy.polynomial.hermite_e",
        "numpy.polynomial.laguerre",
        "numpy.polynomial.legendre",
    ),
    "numpy.random": ("numpy.random",),
    "scipy.cluster": ("scipy.cluster.hierarchy", "scipy.cluster.vq"),
    "scipy.fft": ("scipy.fft",),
    "scipy.integrate": ("scipy.integrate",),
    "scipy.interpolate": ("scipy.interpolate",),
    "scipy.io": ("scipy.io", "scipy.io.arff", "scipy.io.matlab", "scipy.io.wavfile"),
    "scipy.linalg": ("scipy.linalg", "scipy.linalg.interpolative"),
    "scipy.ndimage": ("scipy.ndimage",),
    "scipy.optimize": ("scipy.optimize", "scipy.optimize.elementwise"),
    "scipy.signal": ("scipy.signal", "scipy.signal.windows"),
    "scipy.sparse": ("scipy.sparse", "scipy.sparse.csgraph", "scipy.sparse.linalg"),
    "scipy.spatial": ("scipy.spatial", "scipy.spatial.distance", "scipy.spatial.transform"),
    "scipy.special": ("scipy.special",),
    "scipy.stats": (
        "scipy.stats",
        "scipy.stats.contingency",
        "scipy.stats.mstats",
        "scipy.stats.qmc",
        "scipy.stats.sampling",
    ),
}
"""Label to the public modules whose objects carry it."""

MIN_WORDS = 6
MAX_WORDS = 60
"""Longer ones are tables and lists that the splitter took for a sentence."""
_SKIPPED_SECTIONS = {"references", "examples", "see also"}
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_LIST_ITEM = re.compile(r"([*+-]|#\.|\(?\d+[.)])\s+")
_FIELD = re.compile(r"^\**[\w`., *]+ : ")
SIGNATURE = re.compile(r"[\w.]+\(.*\)")
_ROLE = re.compile(r":[\w:]+:`([^`]*)`")
_FOOTNOTE = re.compile(r"\s*\[\w+\]_")


class Sentence(NamedTuple):
    """One sentence, the sub-package it describes, and the object it comes from."""

    text: str
    label: str
    owner: str
    """Dotted name of the function, class or method: splits go by this."""


def corpus() -> list[Sentence]:
    """Collects every distinct sentence of `MIN_WORDS` to `MAX_WORDS` words, in a fixed order.

    Sentences are the same if they differ only in case, punctuation or their own object's name. One
    that occurs in several objects is kept once, under the first of them; one that
    occurs under several labels has no one right answer and is left out.
    """
    kept: list[Sentence] = []
    first_with: dict[str, Sentence] = {}
    ambiguous: set[Sentence] = set()
    for label, owner, docstring in documented_objects():
        name = owner.rpartition(".")[2]
        for text in sentences(docstring):
            sentence = Sentence(text, label, owner)
            # "NAME has experimental support for ..." is one sentence, whatever the name.
            keys = {normalised(text), normalised(text.replace(name, ""))}
            earlier = {first_with[key] for key in keys if key in first_with}
            first_with |= {key: sentence for key in keys if key not in first_with}
            ambiguous |= {other for other in earlier if other.label != label}
            if not earlier:
                kept.append(sentence)
    return [sentence for sentence in kept if sentence not in ambiguous]


def split_of(owner: str) -> str:
    """Names the split of an object: 70% train, 10% validation, 20% test, by a hash of its name."""
    bucket = int.from_bytes(hashlib.sha256(owner.encode()).digest()[:4], "big") % 10
    return {0: "validation", 1: "test", 2: "test"}.get(bucket, "train")


def sentences(docstring: str) -> Iterator[str]:
    """Yields the sentences of a numpydoc docstring that are prose, by their length."""
    for paragraph in paragraphs(docstring):
        for sentence in _SENTENCE_END.split(plain(paragraph)):
            words = [word for word in sentence.split() if re.search(r"[^\W\d_]", word)]
            if MIN_WORDS <= len(words) <= MAX_WORDS and not SIGNATURE.fullmatch(sentence):
                yield sentence


def documented_objects() -> Iterator[tuple[str, str, str]]:
    """Yields (label, owner, docstring), every function, class and method once."""
    seen: set[int] = set()
    with warnings.catch_warnings():
        # Touching deprecated names warns; the corpus wants their prose all the same.
        warnings.simplefilter("ignore")
        for label, modules in SUBPACKAGES.items():
            for module_name in modules:
                module = importlib.import_module(module_name)
                for name in sorted(dir(module)):
                    thing = getattr(module, name, None)
                    if name.startswith("_") or not callable(thing) or id(thing) in seen:
                        continue
                    if not _belongs(thing, module_name.partition(".")[0]):
                        continue
                    seen.add(id(thing))
                    for owner, docstring in _docstrings(thing, f"{module_name}.{name}"):
                        yield label, owner, docstring


def _belongs(thing: Any, root: str) -> bool:
    """Whether the object is `root`'s own; ufuncs name no module and count as their host's."""
    return (getattr(thing, "__module__", None) or root).partition(".")[0] == root


def _docstrings(thing: Any, name: str) -> Iterator[tuple[str, str]]:
    own = inspect.getdoc(thing)
    if own:
        yield name, own
    if inspect.isclass(thing):
        for method, member in sorted(vars(thing).items()):
            docstring = getattr(member, "__doc__", None)
            described = callable(member) or isinstance(member, property | classmethod)
            if not method.startswith("_") and described and isinstance(docstring, str):
                yield f"{name}.{method}", inspect.cleandoc(docstring)


def paragraphs(docstring: str) -> Iterator[str]:
    """Yields prose paragraphs as one line each: no skipped section, heading, field or code."""
    lines = docstring.splitlines()
    underlined = [bool(re.fullmatch(r"\s*[-=~]{3,}\s*", line)) for line in [*lines[1:], ""]]
    skipping = False
    block: list[str] = []
    code_indent: int | None = None
    for line, is_heading in zip(lines, underlined, strict=True):
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        if is_heading:
            skipping = text.lower() in _SKIPPED_SECTIONS
        if code_indent is not None and text and indent <= code_indent:
            code_indent = None
        starts_code = text.endswith("::") or text.startswith(("..", ">>>"))
        is_prose = not (is_heading or skipping or starts_code or code_indent is not None)
        is_prose = is_prose and bool(re.search(r"[^\W\d_]", text)) and not _FIELD.match(text)
        starts_item = _LIST_ITEM.match(text)
        if block and (starts_item or not is_prose):
            yield " ".join(block)
            block = []
        if is_prose:
            block.append(text[starts_item.end() :] if starts_item else text)
        if starts_code and code_indent is None:
            code_indent = indent
    if block:
        yield " ".join(block)


def plain(paragraph: str) -> str:
    """Strips reStructuredText marks, keeping the words inside."""
    text = _ROLE.sub(r"\1", paragraph)
    text = _FOOTNOTE.sub("", text).replace("`", "").replace("**", "")
    return re.sub(r"\s+", " ", text).strip()


def normalised(text: str) -> str:
    """The form in which two sentences count as the same: letters and digits only."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()
