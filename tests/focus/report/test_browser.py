"""The pages in a real browser: no complaint, keys that work, contrast, pictures to look at.

Screenshots are written to the folder that ATTNJAX_SCREENSHOTS names, or to pytest's own.
"""

import json
import os
from pathlib import Path

import pytest

from attnjax.focus.report import compare, report, show
from tests.focus.report.chromium import Chromium, Page, installed
from tests.focus.report.runs import write_run

CONTRAST = (Path(__file__).parent / "contrast.js").read_text()
EXECUTABLE = installed()
pytestmark = pytest.mark.skipif(
    EXECUTABLE is None,
    reason="needs Chromium: install it, or name it in ATTNJAX_CHROMIUM",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def browser(folder):
    with Chromium(EXECUTABLE, folder) as started:
        yield started


@pytest.fixture(scope="module")
def page_file(folder) -> Path:
    return report(write_run(folder / "steady", layers=6, heads=8))


@pytest.fixture(scope="module")
def comparison_file(folder, page_file) -> Path:
    other = write_run(
        folder / "other", layers=6, heads=8, steps=60, phase=1, examples=False, learning_rate=0.01
    )
    return compare(page_file.parent, other)


def screenshot(page: Page, folder: Path, name: str) -> None:
    shots = Path(os.environ.get("ATTNJAX_SCREENSHOTS", folder / "screenshots"))
    shots.mkdir(parents=True, exist_ok=True)
    page.screenshot(shots / f"{name}.png")
    assert (shots / f"{name}.png").stat().st_size > 20_000


def focus(page: Page, selector: str) -> None:
    page.run(f"document.querySelector({selector!r}).focus()")


def shown(page: Page, selector: str) -> list[int]:
    """Which of the elements are visible."""
    found = f"[...document.querySelectorAll({selector!r})]"
    return page.run(f"{found}.map((x, i) => x.checkVisibility() ? i : -1).filter((i) => i >= 0)")


@pytest.mark.parametrize("kind", ["report", "comparison"])
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (1280, True)])
def test_page_is_in_order(browser, folder, page_file, comparison_file, kind, width, dark):
    page = browser.page(page_file if kind == "report" else comparison_file, width, dark=dark)
    assert page.complaints() == []
    assert all(x.startswith(("file:", "data:")) for x in page.requests()), page.requests()
    assert page.run("document.documentElement.scrollWidth") <= width
    for place in range(page.run("document.querySelectorAll('.example').length") or 1):
        page.run(f"document.querySelectorAll('#example-next').forEach((x) => {place} && x.click())")
        found = page.run(CONTRAST)
        assert found["count"] > 100
        assert found["bad"] == []
        assert page.run("document.documentElement.scrollWidth") <= width
    page.run("document.querySelectorAll('#example-next').forEach((x) => x.click())")
    screenshot(page, folder, f"{kind}-{width}{'-dark' if dark else ''}")
    page.close()


def test_table_is_sorted_by_keys(browser, page_file):
    page = browser.page(page_file, 1280)

    def column(place: int) -> list[float]:
        rows = "[...document.querySelectorAll('#head-table tbody tr')]"
        return page.run(f"{rows}.map((x) => Number(x.cells[{place}].dataset.v))")

    headings = page.run(
        "[...document.querySelectorAll('#head-table th button')].map((x) => x.textContent)"
    )
    place = headings.index("Largest logit")
    before = column(place)
    assert before != sorted(before)
    focus(page, f"#head-table th:nth-child({place}) button")
    page.press("Tab")
    assert page.run("document.activeElement.textContent") == "Largest logit"
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for key, order in (("Enter", "descending"), (" ", "ascending")):
        page.press(key)
        assert column(place) == sorted(before, reverse=order == "descending")
        heading = "document.activeElement.closest('th')"
        assert page.run(f"{heading}.getAttribute('aria-sort')") == order
        said = page.run("document.getElementById('head-table-said').textContent")
        assert said == f"Sorted by Largest logit, {order}."
    assert page.run("document.querySelectorAll('#head-table [aria-sort=none]').length") == (
        len(headings) - 1
    )
    assert page.complaints() == []
    page.close()


def test_what_has_no_number_is_sorted_last(browser, folder):
    run = write_run(folder / "broken", layers=2, heads=4, steps=65)
    lines = (run / "focus.jsonl").read_text().splitlines(keepends=True)
    # The last record is one in which a logit was not finite.
    (run / "focus.jsonl").write_text("".join(lines[:42]))
    page = browser.page(report(run), 1280)
    for _ in range(2):
        page.run("document.querySelectorAll('#head-table th button')[6].click()")
        rows = "[...document.querySelectorAll('#head-table tbody tr')]"
        cells = page.run(f"{rows}.map((x) => x.cells[6].dataset.v)")
        assert cells.count("") == 1 and cells[-1] == ""
    page.close()


def test_examples_and_maps_are_switched_by_keys(browser, page_file):
    page = browser.page(page_file, 1280)
    assert shown(page, ".example") == [0]
    focus(page, "#example-before")
    page.press("Tab")
    page.press("Enter")
    assert shown(page, ".example") == [1]
    page.press("ArrowRight", 2)
    assert shown(page, ".example") == [3]
    page.press("ArrowLeft", 4)
    assert shown(page, ".example") == [4]  # round the end
    focus(page, "#example-choice")
    page.press("ArrowUp", 4)
    assert shown(page, ".example") == [0]
    assert shown(page, "[aria-labelledby=example-0] .map") == [0]
    focus(page, "[aria-labelledby=example-0] .map-choice")
    page.press("ArrowDown")
    assert shown(page, "[aria-labelledby=example-0] .map") == [1]
    assert "Better than chance" in page.run(
        "document.querySelectorAll('[aria-labelledby=example-0] .map')[1].innerText"
    )
    assert page.complaints() == []
    page.close()


def test_a_map_stays_chosen_in_other_examples(browser, page_file):
    page = browser.page(page_file, 1280)
    focus(page, "[aria-labelledby=example-2] .map-choice")  # hidden: the focus stays where it is
    page.run("document.getElementById('example-choice').value = '2'")
    page.run("document.getElementById('example-choice').dispatchEvent(new Event('change'))")
    assert shown(page, "[aria-labelledby=example-2] .map") == [0]
    focus(page, "[aria-labelledby=example-2] .map-choice")
    page.press("ArrowDown")
    focus(page, "#example-next")
    page.press("Enter")
    focus(page, "#example-before")
    page.press("Enter")
    assert shown(page, "[aria-labelledby=example-2] .map") == [1]
    page.close()


def test_heat_maps_are_read_by_keys(browser, page_file):
    page = browser.page(page_file, 1280)
    assert shown(page, "[data-statistic]") == [0]
    focus(page, "input[name=statistic]")
    page.press("ArrowRight")
    assert shown(page, "[data-statistic]") == [1]
    assert page.run(
        "document.querySelector('[data-statistic]:not([hidden])').dataset.statistic"
    ) == ("share")
    focus(page, "[data-statistic=share] .field")
    page.press("ArrowDown", 9)
    page.press("ArrowLeft", 40)
    said = page.run("document.querySelector('[data-statistic=share] .readout').textContent")
    row = json.loads((page_file.parent / "focus.jsonl").read_text().splitlines()[40])
    value = row["modules"]["encoder.layers.1.attention"]["share"][1]
    assert row["step"] == 2000
    assert said == (
        f"encoder.layers.1.attention, head 1, step 2,000: {value:.3g} of maximum; "
        "warning: entropy collapse"
    )
    page.press("ArrowRight")
    said = page.run("document.querySelector('[data-statistic=share] .readout').textContent")
    assert "step 2,050: 0.03 of maximum; warning" in said
    page.close()


def test_all_is_there_without_scripts(browser, page_file):
    page = browser.page(page_file, 1280)
    page.send("Emulation.setScriptExecutionDisabled", value=True)
    browser.events.clear()
    page.send("Page.reload")
    browser.wait_for("Page.loadEventFired", page.session)
    page.send("Emulation.setScriptExecutionDisabled", value=False)
    assert page.run("document.documentElement.className") == ""
    assert shown(page, ".example") == [0, 1, 2, 3, 4]
    assert len(shown(page, "[data-statistic]")) == 9
    page.close()


def test_notebook_frame_runs_apart(browser, folder, page_file):
    notebook = folder / "notebook.html"
    frame = show(page_file.parent, height=700)._repr_html_()
    notebook.write_text(f"<!doctype html><meta charset=utf-8><title>A notebook</title>{frame}")
    page = browser.page(notebook, 1280)
    assert page.complaints() == []
    assert page.run("document.querySelector('iframe').getBoundingClientRect().height") == 700
    assert page.run("document.querySelector('iframe').contentDocument === null")
    page.close()
