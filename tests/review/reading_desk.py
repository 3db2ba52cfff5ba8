"""A console that is served and a real Chromium before it, for tests and benchmarks."""

import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

PATIENCE = 30
"""Seconds."""


def programs() -> list[str]:
    """Chromium and its driver; [] where one is missing."""
    found = [shutil.which(name) for name in ("chromium", "chromedriver")]
    return [] if None in found else found


def chromium(profile: Path | None = None) -> Chrome:
    """profile: the folder of one that outlives the browser."""
    options, (binary, driver) = ChromeOptions(), programs()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    if profile:
        options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return Chrome(options, ChromeService(driver))


class Desk:
    """A served store, and a browser before it."""

    def __init__(self, browser: Chrome, store: Path, tokens: dict[str, str]):
        """store: with items; tokens: name -> token of who may read them."""
        self.browser, self.store, self.tokens = browser, store, tokens
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]  # its own, so that it can be started again there
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "medq_ray.cli", "review", "serve", "--store", self.store, "--port", self.port]
        self.server = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
        assert self.server.stdout.readline().split()[-1] == self.address

    def stop(self, how: int = signal.SIGTERM) -> None:
        self.server.send_signal(how)
        self.server.wait()
        self.server.stdout.close()

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def log_in(self, name: str) -> None:
        self.browser.execute_cdp_cmd("Network.clearBrowserCookies", {})  # before a page of whoever was here can do more
        self.browser.get(f"{self.address}/login")
        self.browser.execute_script("sessionStorage.clear()")
        focused = "return document.activeElement.id"  # a moment after the page has loaded
        WebDriverWait(self.browser, PATIENCE).until(lambda _: self.browser.execute_script(focused) == "token")
        self.press(self.tokens[name], Keys.ENTER)
        self.await_item()

    def press(self, *keys: str) -> None:
        self.browser.switch_to.active_element.send_keys(*keys)

    def shown(self) -> str:
        """The item whose image is on the screen, '' while there is none."""
        return self.browser.execute_script("return document.body.dataset.shown ?? ''")

    def await_item(self, other_than: str = "") -> str:
        def there(_) -> bool:
            return self.shown() not in ("", other_than) and not self.browser.execute_script(
                "return document.body.classList.contains('busy')")  # fmt: skip

        WebDriverWait(self.browser, PATIENCE, 0.02).until(there)
        return self.shown()

    def await_ahead(self) -> None:
        """Wait until the next item is at hand, its image decoded."""
        WebDriverWait(self.browser, PATIENCE, 0.02).until(
            lambda _: self.browser.execute_script("return document.body.dataset.ahead ?? ''") not in ("", self.shown())
        )

    def painted(self, count: int) -> list[float]:
        """What a page that takes times has seen of so many images (benchmarks.console)."""
        found = "return window.painted.length"
        WebDriverWait(self.browser, PATIENCE, 0.02).until(lambda _: self.browser.execute_script(found) == count)
        return self.browser.execute_script("return window.painted")

    def press_button(self, css: str) -> None:
        self.browser.find_element(By.CSS_SELECTOR, css).click()

    def give(self, *keys: str) -> str:
        """Press keys that give a verdict; the item after it."""
        before = self.shown()
        self.press(*keys[:1])
        for key in keys[1:]:
            self.press(key)
        return self.await_item(before)

    def text(self, css: str) -> str:
        return self.browser.find_element(By.CSS_SELECTOR, css).text

    def await_text(self, css: str, text: str) -> None:
        WebDriverWait(self.browser, PATIENCE).until(lambda _: text in self.text(css), f"{css} does not say {text!r}")

    def complaints(self) -> list[str]:
        """Errors that the browser logged: also of the content security policy."""
        return [row["message"] for row in self.browser.get_log("browser") if row["level"] == "SEVERE"]
