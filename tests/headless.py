"""Headless Chromium over the DevTools protocol, as much of it as the site's tests need.

Tornado, which Jupyter brings, speaks the websocket, so the tests need no browser driver. One browser serves all tests;
its profile is a new empty folder and it may reach the loopback address alone.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tornado.websocket import websocket_connect

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--mute-audio",
    "--remote-debugging-port=0",
    # A page that asks for another host must fail here as it would for a reader without a connection.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)


def find_chromium() -> str | None:
    """The path of a Chromium or Chrome, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """A running browser with one page.

    Attributes after `open`: `requests`, the addresses that were asked for; `failures`, requests without an answer or
    with status 400 or more; `messages`, errors and warnings of the console and uncaught exceptions.
    """

    def __init__(self, executable: str, timeout: float = 30.0) -> None:
        self.timeout = timeout
        self.requests: list[str] = []
        self.failures: list[str] = []
        self.messages: list[str] = []
        self._number = 0
        self._sent: dict[str, str] = {}
        self._loaded = False
        self._profile = Path(tempfile.mkdtemp(prefix="chromium-"))
        self._loop = asyncio.new_event_loop()
        self._process = subprocess.Popen(
            [executable, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._socket = self._run(self._connect())
            target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
            attached = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.send(f"{domain}.enable")
            self.send("Network.setCacheDisabled", cacheDisabled=False)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and remove its profile."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if not self._loop.is_closed():
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
        shutil.rmtree(self._profile, ignore_errors=True)

    # ---- What a test does with a page ----

    def open(
        self,
        address: str,
        *,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        scripts: bool = True,
        reduced_motion: bool = True,
    ) -> None:
        """Load `address` in a window of `width` CSS pixels and wait until it, and its mathematics, stand still."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if reduced_motion else "no-preference"},
        ]
        self.send("Emulation.setEmulatedMedia", features=features)
        self.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        self._loaded = False
        self.send("Page.navigate", url="about:blank")
        self._pump(lambda: self._loaded)
        self.requests, self.failures, self.messages = [], [], []
        self._loaded = False
        answer = self.send("Page.navigate", url=address)
        if answer.get("errorText"):
            raise AssertionError(f"{address}: {answer['errorText']}")
        self._pump(lambda: self._loaded)
        if scripts:
            self.evaluate("window.MathJax?.startup?.promise?.then(() => true) ?? true")
            # Late scripts (menus, copy buttons) get two frames to do their work.
            self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression in the page (promises are awaited)."""
        answer = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"script failed: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, script: str, seconds: float = 10.0) -> Any:
        """Evaluate `script` until it is true; its value, or the last value when the time is up."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(script)) and time.monotonic() < end:
            time.sleep(0.05)
        return value

    def picture(self, path: Path, *, full: bool = False, form: str = "png") -> None:
        """Save a picture of the window, or of the whole page."""
        params: dict[str, Any] = {"format": form}
        if full:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            params |= {"captureBeyondViewport": True, "clip": size | {"scale": 1}}
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", **params)["data"]))

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a DevTools method on the page."""
        return self._call(method, params, self._session)

    # ---- The protocol ----

    async def _connect(self) -> Any:
        port_file = self._profile / "DevToolsActivePort"
        end = time.monotonic() + self.timeout
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise RuntimeError(f"the browser ended with status {self._process.returncode} before it listened")
            lines = port_file.read_text().split() if port_file.exists() else []
            if len(lines) >= 2:
                return await websocket_connect(f"ws://127.0.0.1:{lines[0]}{lines[1]}", max_message_size=64 * 2**20)
            await asyncio.sleep(0.05)
        raise RuntimeError(f"the browser did not listen within {self.timeout} s")

    # Tornado's futures are made inside a coroutine, so that they belong to our loop.
    async def _write(self, text: str) -> None:
        await self._socket.write_message(text)

    async def _read(self) -> Any:
        return await self._socket.read_message()

    def _run(self, work: Any) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(work, self.timeout))

    def _call(self, method: str, params: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        self._run(self._write(json.dumps(message)))
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _pump(self, done: Callable[[], bool]) -> None:
        while not done():
            self._receive()

    def _receive(self) -> dict[str, Any]:
        text = self._run(self._read())
        if text is None:
            raise RuntimeError("the browser closed the connection")
        message = json.loads(text)
        if "method" in message:
            self._note(message["method"], message.get("params", {}))
        return message

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            address = params["request"]["url"]
            self._sent[params["requestId"]] = address
            if not address.startswith(("data:", "about:", "blob:")):
                self.requests.append(address)
        elif method == "Network.responseReceived" and params["response"]["status"] >= 400:
            self.failures.append(f"{params['response']['status']} {params['response']['url']}")
        elif method == "Network.loadingFailed" and not params.get("canceled"):
            self.failures.append(f"{params['errorText']} {self._sent.get(params['requestId'])}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.messages.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.messages.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.messages.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
