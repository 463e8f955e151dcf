"""A real headless Chromium for tests of pages; a test that needs it is skipped with a reason where there is none."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)

_NOTE = "return document.querySelector('.viewer-note').textContent"
_STATE = """
const root = document.querySelector('.viewer');
if (!root) return 'none';
return root.querySelector('.viewer-note').textContent.includes('has no WebGL') ? 'refused' : root.dataset.state;
"""


@contextmanager
def chromium(profile: Path, *flags: str) -> Iterator[Any]:
    """Yield a browser without a window that draws WebGL on the CPU.

    Args:
        profile: A new folder for its files.
        flags: Further flags.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*_FLAGS, f"--user-data-dir={profile}", *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def show(browser: Any, page: Path, *, width: int = 1600, media: str = "", dark: bool = False) -> None:
    """Load a page at a width, as a screen or as paper, and wait for its viewer where it has one."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})
    browser.get_log("performance")
    browser.get(page.as_uri())
    deadline = time.monotonic() + 120
    state = None
    while state not in ("ready", "none", "refused") and time.monotonic() < deadline:
        time.sleep(0.1)
        state = browser.execute_script(_STATE)
    assert state in ("ready", "none", "refused"), browser.execute_script(_NOTE)


def requests(browser: Any) -> list[str]:
    """Return the addresses that were asked for since the page was loaded, those inside of the page left out."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith(("data:", "blob:"))]
