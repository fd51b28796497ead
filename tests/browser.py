"""A headless Chromium for the tests of the page; without one they are left out, and say so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def headless_browser(profile: Path) -> Iterator[webdriver.Chrome]:
    """A browser of 1280 x 800 that keeps its console and every request.

    Skips the test on a machine without one, or fails it where ``HTM_NEEDS_BROWSER`` is set.
    """
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        reason = (
            f"the page was not tested in a browser: found no {'driver' if browser else 'Chromium'} "
            "(Debian: apt-get install chromium chromium-driver)"
        )
        if os.environ.get("HTM_NEEDS_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for argument in (
        "--headless=new",
        "--disable-gpu",
        "--disable-dev-shm-usage",  # small in containers
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        f"--user-data-dir={profile}",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),  # which root cannot have
    ):
        options.add_argument(argument)
    running = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        set_size(running, 1280, 800)
        yield running
    finally:
        running.quit()


def set_size(browser: webdriver.Chrome, width: int, height: int) -> None:
    """Of what the page sees; a window of its own cannot be as narrow as a phone."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
