"""No result is cut off a run's page: on a screen, on a phone, on paper."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from downstream.report.run_page import write_run_page
from tests.worlds.chromium import browser
from tests.worlds.painted_lake import painted_lake
from tests.worlds.run_folders import write_run

__all__ = ["browser"]  # the fixture

pytestmark = pytest.mark.slow

#: A4 without its margins, in the px of CSS.
PAPER_PX = 688
NINE = tuple(f"uni2_h+virchow2:cls+mean / model_{number}" for number in range(9))
#: What lies outside its own box, or the page, by its text.
CUT = """() => {
  const page = document.documentElement.clientWidth + 1;
  const isCut = (e) => e.getBoundingClientRect().right > page
    || (e.tagName === 'TABLE' && e.closest('.wide')
        && e.offsetWidth > e.closest('.wide').clientWidth + 1);
  return [...document.querySelectorAll('table, td, th, figure, p, dd')].filter(isCut)
    .map((e) => e.tagName + ': ' + e.textContent.trim().slice(0, 60));
}"""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lake = painted_lake(tmp_path_factory.mktemp("lake") / "lake", patients=32)
    run = write_run(lake, patients=32, arms=NINE)
    write_run_page(lake, run)
    return Path(lake.store.path(f"runs/{run}/report.html"))


@pytest.mark.parametrize(
    ("width", "media"), [(1300, "screen"), (420, "screen"), (PAPER_PX, "print")]
)
def test_nothing_is_wider_than_the_page(
    page_file: Path, browser: Browser, width: int, media: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.emulate_media(media=media)  # type: ignore[arg-type]
    page.goto(page_file.as_uri())
    assert page.evaluate(CUT) == []
    shown = page.inner_text("main")
    # the last measure of the last arm, and the last comparison
    assert shown.count("Brier score") >= 1
    assert NINE[-1] in shown
    page.close()


def test_listings_are_sorted_by_a_click_and_figures_are_drawn(
    page_file: Path, browser: Browser
) -> None:
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("request", lambda request: problems.append(request.url))
    page.goto(page_file.as_uri())
    table = page.locator("table.sortable").first
    button = table.get_by_role("button", name=NINE[0])
    keys = []
    for _ in range(2):
        button.click()
        at = table.locator("thead button").all_inner_texts().index(NINE[0])
        cells = table.locator(f"tbody tr > :nth-child({at + 1})").all()
        keys.append([float(str(cell.get_attribute("data-key"))) for cell in cells])
    assert len(keys[0]) == 32
    assert keys[0] == sorted(keys[0])
    assert keys[1] == keys[0][::-1]
    assert page.locator("table.sortable").count() == 2  # at most five arms in a table
    sizes = page.evaluate("() => [...document.images].map((one) => one.naturalWidth)")
    assert min(sizes) > 50
    # a figure for every arm of each kind, by its words
    for name in NINE:
        assert page.locator(f"img[alt*='{name}'][src^='data:image/svg']").count() == 5
    assert [one for one in problems if not one.startswith(("file:", "data:"))] == []
    page.close()
