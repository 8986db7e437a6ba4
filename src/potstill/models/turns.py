"""Work that keeps the event loop, one piece in each of its rounds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Turns:
    """Lets one of all who are ready go on, and then everybody else, before the next of them."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._line = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def next(self) -> AsyncIterator[None]:
        """Waits for a turn; first come, first served. It follows a change of event loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._line = loop, asyncio.Lock()
        async with self._line:
            yield
            await asyncio.sleep(0)
