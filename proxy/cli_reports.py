"""What commands show to people: a progress bar on a terminal, plain lines otherwise; tables.

Nothing here decides anything; `--json` goes around it.
"""

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self

_LINE_EVERY_S: Final = 10.0
_KIBI: Final = 1024


class Meter:
    """Shows how far a piece of work has come, on standard error."""

    def __init__(self) -> None:
        self._bar: object | None = None
        self._last_line_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        from rich.progress import Progress

        if isinstance(self._bar, Progress):
            self._bar.stop()

    def show(self, doing: str, done: int, total: int | None) -> None:
        """Show a state of things."""
        if sys.stderr.isatty():
            self._show_bar(doing, done, total)
        elif time.monotonic() - self._last_line_at >= _LINE_EVERY_S:
            self._last_line_at = time.monotonic()
            of = f" of {total}" if total is not None else ""
            sys.stderr.write(f"{doing}: {done}{of}\n")

    def _show_bar(self, doing: str, done: int, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import Progress

        if not isinstance(self._bar, Progress):
            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.add_task(doing, total=total)
            self._bar.start()
        task = self._bar.tasks[0]
        self._bar.update(task.id, description=doing, completed=done, total=total)


def size(count: object) -> str:
    """Write a number of bytes for people."""
    number = float(str(count))
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < _KIBI:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= _KIBI
    return f"{number:.1f} TiB"


def stats_lines(result: dict[str, object]) -> Iterator[str]:
    """Write the result of `stats` as lines."""
    stored, used = result["stored"], result["used"]
    assert isinstance(stored, dict), "stats tells what is stored"
    blobs = stored["blobs"]
    stored_bytes, limit_bytes = size(blobs["stored_bytes"]), size(blobs["limit_bytes"])
    yield f"crates       {blobs['blobs']}, {stored_bytes} of {limit_bytes}"
    yield f"index files  {stored['index_entries']}, {size(stored['index_bytes'])}"
    crates, index = size(blobs["memory_bytes"]), size(stored["index_memory_bytes"])
    yield f"in memory    {crates} of crates, {index} of index"
    if blobs["quarantined"]:
        yield f"quarantined  {blobs['quarantined']}"
    for tomb in stored["tombstones"]:
        back = ", there again" if tomb["returned_at"] is not None else ""
        yield f"removed      {tomb['name']} of {tomb['upstream']}{back}"
    if isinstance(used, dict):
        yield from _used_lines(used)
        yield from _address_lines(used.get("addresses", {}))
    if isinstance(result.get("saved"), dict):
        yield from _saved_lines(result["saved"])
    if not isinstance(used, dict):
        yield "nothing is serving"


def _used_lines(used: dict[str, dict[str, dict[str, object]]]) -> Iterator[str]:
    for name, totals in used["registries"].items():
        here = totals["served_from_here"]
        yield (
            f"{name}: {totals['requests']} requests since the start, {here} answered from here; "
            f"{size(totals['sent_bytes'])} sent"
        )
    for name, received in used["upstream_received_bytes"].items():
        asked = used["upstream_requests"][name]
        yield f"from {name}: {asked} requests, {size(received)} received"


def _address_lines(upstreams: dict[str, list[dict[str, object]]]) -> Iterator[str]:
    """Write how each address does of which there is something to tell."""
    for name, addresses in upstreams.items():
        for address in addresses:
            called = f"{name} ({address['mirror']})" if address["mirror"] else name
            told = [
                f"{what} failing for {address[f'{what}_failing_for_s']:.0f} s, "
                f"{'being tried' if address[what] == 'half_open' else 'not asked'}"
                for what in ("index", "crates")
                if address[f"{what}_failing_for_s"] is not None
            ]
            if address["set_aside_for_s"] is not None:
                told.append(f"set aside for {address['set_aside_for_s']:.0f} s more")
            if told:
                yield f"{called}: {'; '.join(told)} ({address['last_failure']})"
            elif address["mirror"]:
                yield f"{called}: well"


def _saved_lines(saved: object) -> Iterator[str]:
    assert isinstance(saved, dict), "stats tells what was saved"
    since = datetime.fromtimestamp(saved["since"], UTC).date().isoformat()
    for name, counts in saved["registries"].items():
        spans = {
            "today": counts["today"],
            "since the start": counts["since_start"],
            f"since {since}": counts["ever"],
        }
        told = (
            f"{count['saved_requests']} requests and {size(count['saved_bytes'])} {span}"
            for span, count in spans.items()
            if count is not None
        )
        yield f"saved by {name}: {'; '.join(told)}"
