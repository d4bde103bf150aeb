"""The operator's commands as data: a name and arguments in, a JSON-ready result out.

The same dispatch serves the control socket of a running `serve` and a command that holds the cache
by itself, so that both do the same and say the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Final

from proxy.service.housekeeping import Housekeeping, Report

Json = dict[str, object]
OPERATIONS: Final = ("verify", "gc", "purge", "stats")


class BadOperation(ValueError):
    """There is no such operation, or its arguments are not what it takes."""


class Operations:
    """What may be asked of a cache.

    `used` tells what was done since the start, if it serves; `saved` what the cache has saved.
    """

    def __init__(
        self,
        housekeeping: Housekeeping,
        used: Callable[[], Json | None],
        saved: Callable[[], Json],
    ) -> None:
        self._housekeeping = housekeeping
        self._used = used
        self._saved = saved

    async def perform(self, name: str, arguments: Mapping[str, object], report: Report) -> Json:
        """Do one operation. Raises BadOperation, NoSuchRegistry, StoreFailure."""
        match name:
            case "verify":
                return asdict(await self._housekeeping.verify(report))
            case "gc":
                return asdict(await self._housekeeping.gc())
            case "purge":
                return await self._purge(arguments, report)
            case "stats":
                stored = asdict(await self._housekeeping.stats())
                return {"stored": stored, "used": self._used(), "saved": self._saved()}
            case _:
                raise BadOperation(f"there is no operation {name!r}")

    async def _purge(self, arguments: Mapping[str, object], report: Report) -> Json:
        registry, crates = arguments.get("registry"), arguments.get("crates", [])
        if not isinstance(registry, str):
            raise BadOperation("purge needs a registry")
        if not isinstance(crates, list) or not all(isinstance(one, str) for one in crates):
            raise BadOperation("purge takes names of crates, or all")
        everything = arguments.get("all") is True
        if everything == bool(crates):
            raise BadOperation("purge takes either names of crates or all of them")
        result = await self._housekeeping.purge(
            registry,
            [str(one) for one in crates],
            everything=everything,
            soft=arguments.get("soft") is True,
            report=report,
        )
        return asdict(result)
