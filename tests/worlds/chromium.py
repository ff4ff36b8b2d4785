"""Debian's Chromium without a window, for tests of what a reader sees."""

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start Debian's Chromium; nothing is downloaded."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed")
    args = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=args)
        yield chromium
        chromium.close()
