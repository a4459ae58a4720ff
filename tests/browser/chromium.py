"""Where the Chromium is, and the sizes of the screens that pages are looked at on."""

import shutil
from pathlib import Path
from typing import Final

from playwright.sync_api import ViewportSize, sync_playwright

PHONE: Final[ViewportSize] = {"width": 360, "height": 740}
DESKTOP: Final[ViewportSize] = {"width": 1280, "height": 800}
NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """Return the system's Chromium, else playwright's own, else None."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None
