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
