"""A registry's server on the loopback, in a thread and an event loop of its own.

`RegistryServer` answers from a `Registry` (or from anything that can answer) unless the test says
otherwise. It is a context manager for synchronous and asynchronous tests alike. It can be stopped
and started on the same port: while it is stopped, connections are refused, and the port stays bound
so that nobody else gets it.

Every request is kept, in order of arrival, with the number of the connection it came on.
"""

import asyncio
import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Coroutine
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

from tests.world.faults import Fault
from tests.world.script import PATIENCE_SECONDS, Gate, Rule, Tap
from tests.world.wire import Exchange, Reply, Request, read_request, whole

_BACKLOG: Final = 1024
_LONGEST_LINE_BYTES: Final = 1 << 20

T = TypeVar("T")


class Site(Protocol):
    """Whatever knows the healthy answer to a request."""

    def answer(self, request: Request) -> Reply:
        """Say it. Called on the server's thread; must not block."""
        ...


class RegistryServer:
    """Serves `site` on a port of 127.0.0.1 that the kernel chose."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.latency_seconds = 0.0
        # Bound and never listening: this is what keeps the port ours while the server is stopped.
        self._reservation = bound_socket(0)
        self.port: int = self._reservation.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"port {self.port}")
        self._listener: socket.socket | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._changed = threading.Condition()
        self._requests: list[Request] = []
        self._connection_count = 0
        self._rules: list[Rule] = []
        self._gates: list[Gate] = []
        self._taps: list[Tap] = []

    @property
    def url(self) -> str:
        """The address of the server, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def index_url(self) -> str:
        """The address of the registry's index as Cargo spells it."""
        return f"sparse+{self.url}/index/"

    def __enter__(self) -> Self:
        self._thread.start()
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_SECONDS)
        self._loop.close()
        self._reservation.close()

    def start(self) -> None:
        """Accept connections, on the same port as before."""
        self._run(self._start())

    def stop(self) -> None:
        """Drop every connection and refuse new ones. Does nothing to a stopped server."""
        self._run(self._stop())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_SECONDS)

    async def _start(self) -> None:
        listener = bound_socket(self.port)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        # Not `asyncio.start_server`: what that has accepted when it is closed, nobody closes.
        self._loop.add_reader(listener, self._accept, listener)
        self._listener = listener

    async def _stop(self) -> None:
        if self._listener is None:
            return
        self._loop.remove_reader(self._listener)
        self._listener.close()
        self._listener = None
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def fail(
        self,
        pattern: str,
        fault: Fault,
        *,
        times: int | None = None,
        times_per_path: int | None = None,
    ) -> Rule:
        """Play `fault` to requests for `pattern`, for ever unless a number of times is given.

        Rules are tried in the order they were made; the first that has something left is played.
        """
        rule = Rule(pattern, fault, times=times, times_per_path=times_per_path)
        with self._changed:
            self._rules.append(rule)
        return rule

    def heal(self) -> None:
        """Forget every fault."""
        with self._changed:
            self._rules.clear()

    def hold(self, pattern: str = "*") -> Gate:
        """Keep requests for `pattern` waiting, once they have been recorded."""
        gate = Gate(pattern, self._loop)
        with self._changed:
            self._gates.append(gate)
        return gate

    def tap(self, pattern: str = "*", *, slice_bytes: int = 1024) -> Tap:
        """Withhold bodies for `pattern`; the test lets slices through."""
        tap = Tap(pattern, self._loop, slice_bytes=slice_bytes)
        with self._changed:
            self._taps.append(tap)
        return tap

    def throttle(self, pattern: str = "*", *, slice_bytes: int, pause_seconds: float) -> Tap:
        """Send bodies for `pattern` in slices with a pause before each."""
        tap = Tap(pattern, self._loop, slice_bytes=slice_bytes, pause_seconds=pause_seconds)
        with self._changed:
            self._taps.append(tap)
        return tap

    def requests(self, pattern: str = "*") -> tuple[Request, ...]:
        """Return the requests for `pattern` since the last `clear`, in order of arrival."""
        with self._changed:
            return tuple(seen for seen in self._requests if fnmatchcase(seen.path, pattern))

    def count(self, pattern: str = "*") -> int:
        """Return how many requests for `pattern` have come since the last `clear`."""
        return len(self.requests(pattern))

    def counts(self) -> Counter[str]:
        """Return how many requests have come since the last `clear`, by path."""
        return Counter(seen.path for seen in self.requests())

    def connections(self) -> int:
        """Return how many connections have been accepted, ever."""
        with self._changed:
            return self._connection_count

    def clear(self) -> None:
        """Forget the requests seen so far."""
        with self._changed:
            self._requests.clear()

    def wait_for(self, pattern: str, count: int) -> None:
        """Block until `count` requests for `pattern` have come."""
        with self._changed:
            came = self._changed.wait_for(lambda: self.count(pattern) >= count, PATIENCE_SECONDS)
            assert came, f"waited for {count} requests for {pattern}, saw {self.count(pattern)}"

    def wait_for_connections(self, count: int) -> None:
        """Block until `count` connections have been accepted in all."""
        with self._changed:
            came = self._changed.wait_for(lambda: self._connection_count >= count, PATIENCE_SECONDS)
            assert came, f"waited for {count} connections, saw {self._connection_count}"

    async def arrived(self, pattern: str, count: int) -> None:
        """Do the same as `wait_for` without blocking the event loop of the test."""
        await asyncio.to_thread(self.wait_for, pattern, count)

    def _accept(self, listener: socket.socket) -> None:
        try:
            accepted, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        accepted.setblocking(False)
        with self._changed:
            self._connection_count += 1
            connection = self._connection_count
            self._changed.notify_all()
        task = self._loop.create_task(self._converse(accepted, connection))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        # One that is cancelled before its first step has closed nothing itself.
        task.add_done_callback(lambda _: accepted.close())

    async def _converse(self, accepted: socket.socket, connection: int) -> None:
        """Answer on one connection until it ends; it is closed when this returns."""
        reader = asyncio.StreamReader(limit=_LONGEST_LINE_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, accepted)
        writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
        try:
            while await self._serve_one(reader, writer, connection):
                pass
            writer.close()
            await writer.wait_closed()
        except (ConnectionError, asyncio.CancelledError):
            # The client has left, or the server is being stopped; nobody above wants to know.
            pass
        finally:
            transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _serve_one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int
    ) -> bool:
        request = await read_request(reader, connection=connection)
        if request is None:
            return False
        with self._changed:
            self._requests.append(request)
            self._changed.notify_all()
            gates, taps = list(self._gates), list(self._taps)
        for gate in gates:
            await gate.hold(request)
        if self.latency_seconds:
            await asyncio.sleep(self.latency_seconds)
        tap = next((tap for tap in reversed(taps) if tap.matches(request)), None)
        slices = whole if tap is None else tap.slices
        exchange = Exchange(request, self.site.answer(request), reader, writer, slices)
        fault = self._fault_for(request.path)
        return await (exchange.send_reply() if fault is None else fault.play(exchange))

    def _fault_for(self, path: str) -> Fault | None:
        with self._changed:
            taken = (rule.take(path) for rule in self._rules)
            return next((fault for fault in taken if fault is not None), None)


def bound_socket(port: int) -> socket.socket:
    """Bind a port of the loopback so that a second socket of ours can bind it too.

    Linux lets sockets with SO_REUSEADDR share a port as long as only one of them listens, refuses
    connections to a port that is only bound, and gives such a port to nobody who asks for any.
    """
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound
