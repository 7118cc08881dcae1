"""Pages with a slide's map in headless Chromium: how to open them, and what they show."""

import io
import os
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image


@contextmanager
def open_browser():
    """Without Chromium the test is skipped, or fails where SLIDE_MIL_REQUIRE_DATA is set."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        message = "Chromium is not installed; install your distribution's package to test pages with maps"
        pytest.fail(message) if os.environ.get("SLIDE_MIL_REQUIRE_DATA") else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def heard(page):
    """A list that grows by what the page's console says."""
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    return said


def until(page, condition):
    """Wait for JavaScript to be true. The pages forbid the evaluation that Playwright's own wait uses."""
    for _ in range(1200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"not within 60 s: {condition}")


def picture(page):
    """(H, W, 3) what the map shows."""
    until(page, "document.querySelectorAll('.leaflet-tile:not(.leaflet-tile-loaded)').length === 0")
    page.wait_for_timeout(400)  # tiles fade in
    shot = page.locator("#map").screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(float)


def box(found):
    """left, top, right, bottom of the pixels (H, W) that are true."""
    rows, columns = np.nonzero(found)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def hide_controls(page):
    page.evaluate("document.querySelectorAll('.leaflet-control').forEach(control => { control.hidden = true; })")
