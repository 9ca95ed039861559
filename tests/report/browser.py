"""Headless Chromium for tests: open a page, evaluate JavaScript in it, collect errors and requests, take pictures.

Spoken to over the DevTools protocol with aiohttp (which datasets brings), so no driver is needed. By hand:
    python tests/report/browser.py results/report.html page.png --width 390 --dark
"""

import argparse
import asyncio
import base64
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip
START_SECONDS = 60.0


@dataclass
class Page:
    """What a page did and what was asked of it."""

    errors: list[str] = field(default_factory=list)
    """Console errors, uncaught exceptions, browser log entries of level error."""
    requests: list[str] = field(default_factory=list)
    """URLs asked for."""
    values: list[Any] = field(default_factory=list)
    """Results of the JavaScript expressions, in order."""


def find() -> str | None:
    """Chromium's path, None when it is not installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def visit(
    url: str,
    expressions: Sequence[str] = (),
    *,
    width: int = 1280,
    height: int = 900,
    dark: bool = False,
    offline: bool = False,
    wait_for: str = "document.readyState === 'complete'",
    seconds: float = 60.0,
    picture: Path | None = None,
    pdf: Path | None = None,
    before: str = "",
) -> Page:
    """Open a URL in a fresh browser, wait until `wait_for` is true, then evaluate the expressions.

    `before` is run ahead of the page's own scripts.

    Raises:
        TimeoutError: `wait_for` did not become true in `seconds`.
    """
    binary = find()
    assert binary, "no Chromium"
    with tempfile.TemporaryDirectory(prefix="moesaic-chromium-", ignore_cleanup_errors=True) as folder:
        command = [
            binary,
            *FLAGS,
            f"--user-data-dir={folder}",
            f"--window-size={width},{height}",
            "about:blank",
        ]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
        try:
            return asyncio.run(
                _visit(
                    Path(folder),
                    url,
                    expressions,
                    (width, height),
                    dark,
                    offline,
                    wait_for,
                    seconds,
                    picture,
                    pdf,
                    before,
                )
            )
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def _visit(
    folder: Path,
    url: str,
    expressions: Sequence[str],
    size: tuple[int, int],
    dark: bool,
    offline: bool,
    wait_for: str,
    seconds: float,
    picture: Path | None,
    pdf: Path | None,
    before: str,
) -> Page:
    page = Page()
    port = await _port(folder)
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json") as answer:
            targets = await answer.json()
        address = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
        async with session.ws_connect(address, max_msg_size=0) as socket:
            tab = _Tab(socket, page)
            for domain in ("Page", "Runtime", "Log", "Network"):
                await tab.call(f"{domain}.enable")
            if offline:
                nothing = {"latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
                await tab.call("Network.emulateNetworkConditions", offline=True, **nothing)
            media = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
            await tab.call("Emulation.setEmulatedMedia", features=media)
            phone = size[0] < 600
            screen = {
                "width": size[0],
                "height": size[1],
                "deviceScaleFactor": 2 if phone else 1,
                "mobile": phone,
            }
            await tab.call("Emulation.setDeviceMetricsOverride", **screen)
            if before:
                await tab.call("Page.addScriptToEvaluateOnNewDocument", source=before)
            await tab.call("Page.navigate", url=url)
            deadline = asyncio.get_running_loop().time() + seconds
            while not await tab.evaluate(f"location.href !== 'about:blank' && ({wait_for})"):
                if asyncio.get_running_loop().time() > deadline:
                    shown = await tab.evaluate("document.body.innerText.slice(0, 2000)")
                    raise TimeoutError(
                        f"{url}: not true after {seconds} s: {wait_for}; errors {page.errors}; {shown}"
                    )
                await asyncio.sleep(0.2)
            for expression in expressions:
                page.values.append(await tab.evaluate(expression))
            if picture:
                shot = await tab.call("Page.captureScreenshot")
                picture.write_bytes(base64.b64decode(shot["data"]))
            if pdf:
                printed = await tab.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
                pdf.write_bytes(base64.b64decode(printed["data"]))
    return page


async def _port(folder: Path) -> int:
    """Chromium writes the port that it chose into its profile."""
    path = folder / "DevToolsActivePort"
    for _ in range(int(START_SECONDS / 0.1)):
        if path.exists() and (lines := path.read_text().split("\n"))[0]:
            return int(lines[0])
        await asyncio.sleep(0.1)
    raise TimeoutError(f"Chromium did not start in {START_SECONDS} s")


class _Tab:
    def __init__(self, socket: Any, page: Page):
        self.socket, self.page, self.number = socket, page, 0

    async def evaluate(self, expression: str) -> Any:
        answer = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": params})
        while True:
            message = await self.socket.receive_json()
            if message.get("id") == self.number:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result
            self._event(message.get("method", ""), message.get("params", {}))

    def _event(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.page.errors.append(
                str(params["exceptionDetails"].get("exception", params["exceptionDetails"]))
            )
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.page.errors.append(
                " ".join(str(arg.get("value", arg.get("description"))) for arg in params["args"])
            )
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.page.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.page.requests.append(params["request"]["url"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--dark", action="store_true")
    given = parser.parse_args()
    full = "document.documentElement.scrollHeight"
    tall = visit(given.page.absolute().as_uri(), [full], width=given.width, dark=given.dark).values[0]
    options: dict[str, Any] = {"width": given.width, "height": min(tall, 16_000), "dark": given.dark}
    seen = visit(given.page.absolute().as_uri(), picture=given.picture, **options)
    print(
        tall,
        seen.errors,
        [request for request in seen.requests if not request.startswith(("data:", "file:"))],
    )
