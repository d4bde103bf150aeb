"""Streams and the application's handlers: which streams are open, and what runs for one of them.

The handler is aiohttp's own request handler, and does not know that this is HTTP/2. How many run at
once is `errands`' to say; what becomes of the frames is the connection's.
"""

import asyncio
import logging
from typing import Final

from aiohttp import web
from aiohttp.http import RawRequestMessage

from proxy.core.events import How
from proxy.web.failures import RETRY_AFTER_S
from proxy.web.http2.stream import Stream, StreamWriter
from proxy.web.replies import SERVER

logger = logging.getLogger(__name__)

# What is said to a request that no handler can be had for.
NO_ROOM: Final = (
    (":status", "503"),
    ("server", SERVER),
    ("retry-after", str(RETRY_AFTER_S)),
    ("x-cache", How.REFUSED.value),
    ("content-length", "0"),
)


async def handle(server: web.Server, stream: Stream, message: RawRequestMessage) -> None:
    """Run the application's handler for one stream, to the end of its response."""
    stream.task = task = asyncio.current_task()
    assert task is not None, "this is a task"
    try:
        request = server.request_factory(
            message,
            stream.payload,
            stream.protocol,  # type: ignore[arg-type]
            StreamWriter(stream),
            task,
        )
        response = await server.request_handler(request)
        await response.prepare(request)
        await response.write_eof()
    except ConnectionError:
        pass  # the stream is gone, or the client is
    except Exception:
        # The boundary: what the handler let through is ours.
        logger.exception("a request over HTTP/2 failed: %s", message.path)


class Streams(dict[int, Stream]):
    """The open streams of one connection, by their numbers."""

    __slots__ = ()

    def lose(self, stream_id: int) -> None:
        """Take a stream out, if it is there, and tell whoever waits for it."""
        stream = self.pop(stream_id, None)
        if stream is not None:
            stream.lose()

    def lose_all(self) -> None:
        """Take all of them out."""
        for stream_id in tuple(self):
            self.lose(stream_id)

    def open_windows(self, stream_id: int) -> None:
        """Wake whoever waits for the window of a stream; of all of them for 0."""
        if stream_id:
            stream = self.get(stream_id)
            if stream is not None:
                stream.window_opened.set()
            return
        for stream in self.values():
            stream.window_opened.set()

    async def all_handled(self) -> None:
        """Wait until the handlers of those that are open now have ended."""
        # Some begin in one of the next turns.
        while any(stream.task is None for stream in self.values()):  # noqa: ASYNC110
            await asyncio.sleep(0)
        tasks = [stream.task for stream in self.values() if stream.task is not None]
        if tasks:
            await asyncio.wait(tasks)
