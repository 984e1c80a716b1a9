"""The report on a watched run: one HTML file that needs no network, and the same in a notebook.

`python -m attnjax.focus report RUN_DIR` and `python -m attnjax.focus compare RUN_A RUN_B` write it.
Needs jinja2: `pip install 'attnjax[report]'`.
"""

from __future__ import annotations

import dataclasses
import html
from pathlib import Path

from attnjax.focus.report.comparison import comparison_page
from attnjax.focus.report.files import write_page
from attnjax.focus.report.run_page import report_page
from attnjax.focus.report.runs import read_run

__all__ = ["Shown", "compare", "report", "show"]

REPORT = "focus.html"


@dataclasses.dataclass(frozen=True)
class Shown:
    """A page that a notebook shows, in a frame of its own.

    Attributes:
        page: the HTML.
        height: of the frame, in pixels.
    """

    page: str = dataclasses.field(repr=False)
    height: int = 800

    def _repr_html_(self) -> str:
        # Scripts of the page run apart from the notebook: they see nothing of it.
        return (
            f'<iframe title="attnjax focus report" sandbox="allow-scripts" width="100%" '
            f'height="{self.height:d}" style="border:0" srcdoc="{html.escape(self.page)}"></iframe>'
        )


def show(run_dir: str | Path, *, height: int = 800) -> Shown:
    """The report on a run, for a notebook: `show("runs/one")` as the last line of a cell.

    Args:
        run_dir: the run directory; files that are missing or broken are told of on the page.
        height: of the frame, in pixels.

    Raises:
        ValueError: `run_dir` is no run directory.
        ImportError: jinja2 is not installed.
    """
    return Shown(report_page(read_run(Path(run_dir))), height)


def report(run_dir: str | Path, out: str | Path | None = None, *, force: bool = False) -> Path:
    """Writes the report on a run.

    Args:
        run_dir: the run directory; files that are missing or broken are told of on the page.
        out: the file; focus.html in the run directory by default.
        force: replace a file that is no report of ours, too.

    Returns:
        The file.

    Raises:
        ValueError: `run_dir` is no run directory, or `out` cannot be written to or is a file that
            is no report of ours.
        ImportError: jinja2 is not installed.
    """
    path = Path(run_dir) / REPORT if out is None else Path(out)
    write_page(path, report_page(read_run(Path(run_dir))), force=force)
    return path


def compare(
    run_a: str | Path, run_b: str | Path, out: str | Path | None = None, *, force: bool = False
) -> Path:
    """Writes a page that sets two runs side by side.

    Args:
        run_a: a run directory.
        run_b: another.
        out: the file; `focus_against_NAME.html` in `run_a` by default, by the name of `run_b`.
        force: replace a file that is no report of ours, too.

    Returns:
        The file.

    Raises:
        ValueError: one is no run directory, or `out` cannot be written to or is a file that is no
            report of ours.
        ImportError: jinja2 is not installed.
    """
    a, b = read_run(Path(run_a)), read_run(Path(run_b))
    path = a.path / f"focus_against_{b.name}.html" if out is None else Path(out)
    write_page(path, comparison_page(a, b), force=force)
    return path
