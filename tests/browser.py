"""A real browser without a window, spoken to over its own debugging protocol."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--remote-debugging-port=0",
)  # fmt: skip


class Tab:
    """One page of the browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, session: str):
        self._socket, self._session, self._number = socket, session, 0
        self.complaints: list[str] = []
        """What the page wrote to its console, or did not catch."""

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        await self._socket.send_json(message)
        while True:
            found = json.loads((await self._socket.receive(timeout=20)).data)
            if found.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(found["params"]))
            if found.get("id") == self._number:
                assert "error" not in found, found["error"]
                return found["result"]

    async def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        asked = {"expression": script, "returnByValue": True, "awaitPromise": True}
        found = await self.send("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def press(self, *keys: str) -> None:
        """Presses keys one after the other."""
        for key in keys:
            text = {"text": key} if len(key) == 1 else {}
            await self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            await self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    async def open(self, url: str) -> None:
        """Goes to an address and waits until it is there."""
        await self.send("Page.navigate", url=url)
        for _ in range(200):
            state = await self.run("document.readyState + location.href")
            if state.startswith("complete" + url[:7]):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{url} was not loaded: {state}")


@contextlib.asynccontextmanager
async def open_tab(
    folder: Path, *, width: int = 1280, height: int = 800, scheme: str = "light"
) -> AsyncIterator[Tab]:
    """A tab of a browser of its own, which saves downloads in `folder`."""
    assert CHROMIUM, "the test is skipped where there is no browser"
    process = await asyncio.create_subprocess_exec(
        CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank",
        stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        url = ""
        while not url:
            line = (await asyncio.wait_for(process.stderr.readline(), 30)).decode()
            assert line, "the browser ended at once"
            url = line.partition("listening on ")[2].strip()
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
            whole = Tab(socket, "")
            target = (await whole.send("Target.createTarget", url="about:blank"))["targetId"]
            attached = await whole.send("Target.attachToTarget", targetId=target, flatten=True)
            await whole.send(
                "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder)
            )
            tab = Tab(socket, attached["sessionId"])
            tab._number = 1000
            for domain in ("Page", "Runtime", "Log"):
                await tab.send(f"{domain}.enable")
            await tab.send(
                "Emulation.setDeviceMetricsOverride",
                width=width, height=height, deviceScaleFactor=1, mobile=width < 500,
            )  # fmt: skip
            await tab.send(
                "Emulation.setEmulatedMedia",
                features=[{"name": "prefers-color-scheme", "value": scheme}],
            )
            yield tab
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
