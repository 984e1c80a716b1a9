"""Write docs/api.md: every public name with the first line of its docstring (`make docs`)."""

import importlib
import inspect
import sys
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
    "attnjax.models",
    "attnjax.models.decode",
    "attnjax.models.pretrained",
    "attnjax.nn",
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
            summary = (inspect.getdoc(getattr(module, name)) or "").partition("\n\n")[0]
            summary = " ".join(summary.split()).replace("|", r"\|")
            rows.append(f"| `{module_name}.{name}` | {summary} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(render())
