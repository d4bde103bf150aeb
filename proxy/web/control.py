"""The control socket: how commands reach the `serve` that holds the cache.

HTTP on `<cache.dir>/control.sock`, which only the owner may open. POST `/{operation}` with the
arguments as JSON; the answer is lines of JSON: any number of `{"progress": ...}`, then one
`{"result": ...}` or `{"error": ...}`. An operation goes on to its end though the asker leave.
"""

import asyncio
import json
import logging
from dataclasses import asdict
from typing import Final

from aiohttp import web

from proxy.core.failures import StoreFailure
from proxy.service.housekeeping import NoSuchRegistry, Progress
from proxy.service.operations import BadOperation, Json, Operations

logger = logging.getLogger(__name__)

SOCKET_NAME: Final = "control.sock"
USAGE, COULD_NOT = "usage", "could_not"


def control_app(operations: Operations) -> web.Application:
    """Build the application behind the control socket."""
    control = _Control(operations)
    app = web.Application(client_max_size=4 * 1024 * 1024)
    app.router.add_post("/{operation}", control.handle)
    app.on_shutdown.append(control.stop)
    return app


class _Control:
    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._running: set[asyncio.Task[Json]] = set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        arguments: object = await request.json()
        lines: asyncio.Queue[Json | None] = asyncio.Queue()
        task = asyncio.create_task(self._perform(request.match_info["operation"], arguments, lines))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda _: lines.put_nowait(None))
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        while (line := await lines.get()) is not None:
            await response.write(_encoded(line))
        last: Json = {"error": {"kind": COULD_NOT, "message": "the server is stopping"}}
        await response.write(_encoded(last if task.cancelled() else task.result()))
        await response.write_eof()
        return response

    async def _perform(
        self, name: str, arguments: object, lines: asyncio.Queue[Json | None]
    ) -> Json:
        def report(progress: Progress) -> None:
            lines.put_nowait({"progress": asdict(progress)})

        if not isinstance(arguments, dict):
            return {"error": {"kind": USAGE, "message": "arguments are a JSON object"}}
        try:
            return {"result": await self._operations.perform(name, arguments, report)}
        except (BadOperation, NoSuchRegistry) as problem:
            return {"error": {"kind": USAGE, "message": str(problem)}}
        except StoreFailure as failure:
            return {"error": {"kind": COULD_NOT, "message": str(failure)}}
        except Exception as error:
            # The boundary: the asker gets a line, the log the whole of it.
            logger.exception("the operation %s failed", name)
            return {"error": {"kind": COULD_NOT, "message": f"unexpected: {error!r}"}}

    async def stop(self, _: web.Application) -> None:
        for task in self._running:
            task.cancel()


def _encoded(line: Json) -> bytes:
    return json.dumps(line).encode() + b"\n"
