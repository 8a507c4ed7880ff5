"""A real browser for the tests: Debian's Chromium, or the user's own Chrome or Edge."""

import contextlib
import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")


@contextlib.contextmanager
def browser():
    """Started once for many pages. Without any browser the test is skipped, but never in CI."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install '.[dev]'")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    ways = [{"executable_path": path}] if path else [{"channel": "chrome"}, {"channel": "msedge"}]
    with sync_api.sync_playwright() as playwright:
        for way in ways:
            try:
                started = playwright.chromium.launch(args=["--no-sandbox"], **way)
            except sync_api.Error as error:
                told = str(error).splitlines()[0]
            else:
                yield started
                started.close()
                return
    if os.environ.get("CI"):
        pytest.fail(f"CI must have a browser: {told}")
    pytest.skip(f"there is no Chromium, Chrome or Edge that starts: {told}")
