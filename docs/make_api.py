"""Write docs/api.md: every public name with the first line of its docstring (`make docs`)."""

import importlib
import inspect
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"
MODULES = (
    "attnjax",
    "attnjax.autotune",
    "attnjax.focus",
    "attnjax.focus.faithful",
    "attnjax.focus.maps",
    "attnjax.focus.report",
    "attnjax.focus.steady",
    "attnjax.models",
    "attnjax.models.decode",
    "attnjax.models.pretrained",
    "attnjax.nn",
    "attnjax.sharding",
)


def render() -> str:
    """Returns the page as Markdown."""
    parts = [
        "# Public names",
        "Written by `make docs`, from the docstrings; `help(name)` shows shapes, errors, sources.",
    ]
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        rows = [f"## `{module_name}`", "", "| name | what it is |", "|---|---|"]
        for name in sorted(module.__all__, key=str.casefold):
            summary = " ".join(_summary(getattr(module, name)).split()).replace("|", r"\|")
            rows.append(f"| `{module_name}.{name}` | {summary} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _summary(value: object) -> str:
    if isinstance(value, types.GenericAlias):  # whose docstring is that of `dict` and the like
        return f"A kind of `{value.__origin__.__name__}`, for annotations."
    return (inspect.getdoc(value) or "").partition("\n\n")[0]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(render())
