"""A proxy under load that is killed without a word, again and again; what must be true after each.

The load asks for everything in a random order (the same for the same seed) while the upstream sends
slowly, so that a kill finds transfers in all states. Whatever is answered is looked at, before the
kill and after it: right bytes, an honest 503, or a transfer that was cut. Nothing else is allowed.
"""

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.web.http11 import BrokenOff, ask
from tests.world.crates import Package
from tests.world.holdfast import Answer, Holdfast
from tests.world.registry import Registry, index_path
from tests.world.server import RegistryServer

_SIZES: Final = (0, 3_000, 90_000, 300_000, 900_000)
_CLIENTS: Final = 12


@dataclass(slots=True)
class Tally:
    """What was answered."""

    right: int = 0
    refused: int = 0
    cut: int = 0


class Killing:
    """One proxy, one upstream, and rounds of load and death."""

    def __init__(self, proxy: Holdfast, upstream: RegistryServer, registry: Registry) -> None:
        self._proxy = proxy
        self._upstream = upstream
        self._registry = registry
        self._names: list[str] = []
        upstream.throttle("/crates/*", slice_bytes=65_536, pause_seconds=0.002)

    def round(self, number: int) -> Tally:
        """Load, kill, start, and look at what is there while the upstream is away."""
        chance = random.Random(number)
        self._publish(number)
        asyncio.run(self._load(chance))
        self._upstream.stop()
        self._proxy.start()
        held = asyncio.run(self._ask_everything())
        assert held.cut == 0, "a transfer was cut though nobody was killed"
        self._upstream.start()
        return held

    def finish(self) -> None:
        """Ask for everything with the upstream up: all of it must be right now."""
        tally = asyncio.run(self._ask_everything())
        assert (tally.refused, tally.cut) == (0, 0)
        assert tally.right == 2 * len(self._names)

    def _publish(self, number: int) -> None:
        for which, padding_bytes in enumerate(_SIZES):
            name = f"load-{number}-{which}"
            self._names.append(name)
            self._registry.publish(Package(name, padding_bytes=padding_bytes))

    async def _load(self, chance: random.Random) -> None:
        """Let clients ask, and kill the proxy once some of them have been answered."""
        urls = [url for name in self._names for url in (_index_url(name), _crate_url(name))]
        enough = chance.randrange(5, 40)
        answered = asyncio.Semaphore(0)

        async def client(order: list[str]) -> None:
            for url in order:
                if await self._look(url, Tally()) is None:
                    return
                answered.release()

        clients = [
            asyncio.create_task(client(chance.sample(urls, len(urls)))) for _ in range(_CLIENTS)
        ]
        for _ in range(enough):
            counted = asyncio.create_task(answered.acquire())
            await asyncio.wait([counted, *clients], return_when=asyncio.FIRST_COMPLETED)
            counted.cancel()
        self._proxy.kill()
        await asyncio.gather(*clients)

    async def _ask_everything(self) -> Tally:
        tally = Tally()
        urls = [url for name in self._names for url in (_index_url(name), _crate_url(name))]
        answers = await asyncio.gather(*(self._look(url, tally) for url in urls))
        assert None not in answers, "nobody killed it"
        return tally

    async def _look(self, url: str, tally: Tally) -> Answer | None:
        """Ask for one thing and judge the answer; None if the proxy died meanwhile."""
        try:
            answer = await ask(self._proxy.port, url)
        except BrokenOff as broken:
            tally.cut += 1
            return broken.answer
        except (ConnectionError, asyncio.IncompleteReadError):
            return None
        if answer.status == 200:
            tally.right += 1
            assert answer.body == self._right(url), f"wrong bytes for {url}"
        else:
            tally.refused += 1
            assert answer.status == 503, answer
        return answer

    def _right(self, url: str) -> bytes:
        *_, name, vers, last = url.split("/")
        if last == "download":
            return self._registry.crate(name, vers)
        return self._registry.index(last)


def _index_url(name: str) -> str:
    return f"/crates-io/index/{index_path(name)}"


def _crate_url(name: str) -> str:
    return f"/crates-io/crates/{name}/1.0.0/download"


def blob_path(cache_dir: Path, digest: str) -> Path:
    """Return where a blob is."""
    return cache_dir / "blobs" / "sha256" / digest[:2] / digest[2:4] / digest
