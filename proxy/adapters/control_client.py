"""Asking a running `serve` through its control socket; see `proxy.web.control` for the protocol."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import aiohttp

from proxy.core.failures import StoreFailure

# `sun_path` of sockaddr_un, less its terminating zero.
_SOCKET_PATH_MAX_BYTES: Final = 107
_LINE_MAX_BYTES: Final = 64 * 1024 * 1024


class NobodyServes(Exception):
    """Nothing listens on the control socket."""


class Refused(Exception):
    """The server says that the command is wrong."""


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Give a name for `path` that fits into a socket address, while the context lasts."""
    if len(os.fsencode(path)) <= _SOCKET_PATH_MAX_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


async def ask(
    socket: Path,
    operation: str,
    arguments: Mapping[str, object],
    on_progress: Callable[[dict[str, object]], None],
) -> dict[str, object]:
    """Have one operation done. Raises NobodyServes, Refused, StoreFailure."""
    with short_path(socket) as path:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        connector = aiohttp.UnixConnector(path=path)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, read_bufsize=_LINE_MAX_BYTES
        ) as session:
            try:
                async with session.post(f"http://control/{operation}", json=arguments) as response:
                    async for line in response.content:
                        answer: object = json.loads(line)
                        assert isinstance(answer, dict), "the protocol is lines of objects"
                        if "progress" in answer:
                            on_progress(answer["progress"])
                        elif "result" in answer:
                            result = answer["result"]
                            assert isinstance(result, dict), "results are objects"
                            return result
                        else:
                            _raise(answer.get("error"))
            except aiohttp.ClientConnectorError:
                raise NobodyServes from None
            except aiohttp.ClientError as error:
                raise StoreFailure(f"the running serve broke off: {error}") from None
    raise StoreFailure("the running serve gave no result")


def _raise(error: object) -> None:
    kind, message = "could_not", "the running serve gave no reason"
    if isinstance(error, dict):
        kind, message = str(error.get("kind")), str(error.get("message"))
    if kind == "usage":
        raise Refused(message)
    raise StoreFailure(message)
