"""A real browser for the pages: the system's Chromium, driven through its DevTools pipe.

No package is needed for that: Chromium takes JSON commands on file descriptor 3 and answers on 4.
Where no Chromium is installed the tests that ask for `browser` are skipped.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new --remote-debugging-pipe --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-default-apps --disable-extensions --hide-scrollbars --mute-audio "
    "--disable-dev-shm-usage --force-color-profile=srgb --disable-features=Translate"
)
# puts the two ends of the pipes where Chromium expects them and becomes Chromium
_LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13,
        "Escape": 27, "Backspace": 8, "PageUp": 33, "PageDown": 34, "Tab": 9, " ": 32}  # fmt: skip


class BrowserError(RuntimeError):
    """The browser answered with an error, died or took too long."""


class Browser:
    """One Chromium process with one page; every test starts from an empty page."""

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # only a root user, as in a container, has to do without Chromium's sandbox
        flags = [*FLAGS.split(), *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        command = [program, *flags, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(to_browser), str(from_browser), *command],
            pass_fds=(to_browser, from_browser), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._last = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self) -> None:
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, method: str, timeout: float = 60, **params: Any) -> dict[str, Any]:
        """The result of one DevTools command."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        end = time.monotonic() + timeout
        while True:
            answer = self._next(end, method)
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _next(self, end: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._read], [], [], left)[0]:
                raise BrowserError(f"{method}: no answer in time")
            data = os.read(self._read, 1 << 20)
            if not data:
                raise BrowserError(f"{method}: the browser has gone")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(line)

    def open(self, path: Path, width: int = 1280, height: int = 900, *, dark: bool = False,
             phone: bool = False, ratio: float = 1) -> None:  # fmt: skip
        """Opens a file in a window of this size and waits until its script says it is ready."""
        self.resize(width, height, phone=phone, ratio=ratio)
        self.media("screen", dark=dark)
        self.events.clear()
        self.js("window.isLeft = true")  # the page before may answer for a while yet
        self.call("Page.navigate", url=path.resolve().as_uri())
        is_there = (
            "!window.isLeft && document.readyState === 'complete' && "
            "document.documentElement.dataset.ready"
        )
        try:
            self.wait(is_there)
        except BrowserError:  # asked between the two pages, where there is none
            self.wait(is_there)

    def resize(self, width: int, height: int, *, phone: bool = False, ratio: float = 1) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=ratio, mobile=phone)  # fmt: skip
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone, maxTouchPoints=2)

    def media(self, kind: str, *, dark: bool = False) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=kind, features=[scheme])

    def js(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True,
                           returnByValue=True, userGesture=True)  # fmt: skip
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description", details["text"]))
        return result["result"].get("value")

    def wait(self, condition: str, timeout: float = 20) -> None:
        """Waits until a JavaScript expression is true."""
        end = time.monotonic() + timeout
        while not self.js(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise BrowserError(f"never true: {condition}; {self.problems()}")
            time.sleep(0.02)

    def wait_for(self, condition: Callable[[], object], timeout: float = 20) -> None:
        """Waits until something outside the page is true, such as a file that is there."""
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                raise BrowserError("never true")
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        return self.js(f"document.querySelector({json.dumps(selector)}).innerText")

    def place(self, selector: str, x: float = 0.5, y: float = 0.5) -> tuple[float, float]:
        """The point of an element at these shares of its box, scrolled into view."""
        found = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center', behavior: 'instant'});"
            " const b = e.getBoundingClientRect();"
            f" return [b.left + b.width * {x}, b.top + b.height * {y}] }})()"
        )
        return found[0], found[1]

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        button = {"button": "left", "buttons": 1, "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y,
                  **({} if kind == "mouseWheel" else button), **more)  # fmt: skip

    def click(self, selector: str) -> None:
        x, y = self.place(selector)
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def drag(self, selector: str, start: tuple[float, float], by: tuple[float, float]) -> None:
        x, y = self.place(selector, *start)
        self.mouse("mousePressed", x, y)
        for part in (0.5, 1):
            self.mouse("mouseMoved", x + by[0] * part, y + by[1] * part)
        self.mouse("mouseReleased", x + by[0], y + by[1])

    def wheel(self, selector: str, delta: float, x: float = 0.5, y: float = 0.5) -> None:
        left, top = self.place(selector, x, y)
        self.mouse("mouseWheel", left, top, deltaX=0, deltaY=delta)

    def touch(self, kind: str, *points: tuple[float, float]) -> None:
        touches = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        self.call("Input.dispatchTouchEvent", type=kind, touchPoints=touches)

    def press(self, *keys: str, release: bool = True, modifiers: int = 0) -> None:
        for key in keys:
            code = KEYS.get(key, ord(key[0].upper()))
            text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            down = {"text": text} if text and not modifiers else {}
            for kind in ("keyDown", "keyUp") if release else ("keyDown",):
                more = down if kind == "keyDown" else {}
                self.call("Input.dispatchKeyEvent", type=kind, key=key, modifiers=modifiers,
                          windowsVirtualKeyCode=code, **more)  # fmt: skip

    def choose(self, selector: str, value: str) -> None:
        """Picks an option of a select as a user would."""
        self.js(
            f"(() => {{ const s = document.querySelector({json.dumps(selector)}); "
            f"s.value = {json.dumps(value)}; s.dispatchEvent(new Event('change')); }})()"
        )

    def downloads_to(self, folder: Path) -> None:
        session, self._session = self._session, None
        try:
            self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        finally:
            self._session = session

    def screenshot(self, path: Path, *, full: bool = False) -> None:
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self) -> bytes:
        self.media("")  # an emulated screen would be printed as a screen
        result = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
        return base64.b64decode(result["data"])

    def requests(self) -> list[str]:
        """Everything that was asked for since the page was opened, but data URIs."""
        urls = [event["params"]["request"]["url"] for event in self.events
                if event.get("method") == "Network.requestWillBeSent"]  # fmt: skip
        return [url for url in urls if not url.startswith("data:")]

    def problems(self) -> list[str]:
        """Exceptions, errors and warnings of the page since it was opened."""
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                found.append(details.get("exception", {}).get("description", details["text"]))
            elif event.get("method") == "Log.entryAdded":
                found.append(params["entry"]["text"])
            elif event.get("method") == "Runtime.consoleAPICalled":
                found.append(str([one.get("value") for one in params["args"]]))
        return found


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None or os.name != "posix":
        pytest.skip("no Chromium found; install it (apt install chromium) or set CHROMIUM")
    browser = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield browser
    with contextlib.suppress(OSError):
        browser.close()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """An empty page; a test that leaves an exception or an error on its page fails."""
    chromium.call("Page.navigate", url="about:blank")
    chromium.events.clear()
    yield chromium
    assert chromium.problems() == []
