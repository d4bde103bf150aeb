"""The configuration read anew while the proxy serves: all of it takes effect, or nothing.

First everything is read and built that a change needs, then it is put in place between two turns of
the event loop: no request sees half of it. A configuration with an error in it, and one that
changes what only a restart can, leave everything as it was and say so by key. What may change is
`config_changes`' to say; how, is known where the values are used, and comes here as `Adoption`s.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from proxy.config import ConfigError, Settings
from proxy.config_changes import Adoption, Change, Reading, compare

logger = logging.getLogger(__name__)


class Reloader:
    """Holds what is in effect. `tell` gets to know of each reload whether it succeeded."""

    def __init__(
        self,
        reading: Reading,
        reread: Callable[[], Settings],
        adoptions: Sequence[Adoption],
        tell: Callable[[bool], None],
    ) -> None:
        self._reading = reading
        self._reread = reread
        self._adoptions = adoptions
        self._tell = tell

    async def reload_when(self, told: asyncio.Event) -> None:
        """Reload each time that `told` is set, one reload after the other, until cancelled.

        Being told several times during one reload is worth one more.
        """
        while True:
            await told.wait()
            told.clear()
            try:
                is_done = await self.reload()
            except Exception:
                # The boundary: whatever nobody foresaw, the proxy serves as it did.
                logger.exception("not reloaded: unexpected; this is a bug in holdfast")
                is_done = False
            self._tell(is_done)

    async def reload(self) -> bool:
        """Read the configuration and take on what has changed; tells whether that succeeded."""
        try:
            new = await asyncio.to_thread(lambda: Reading.of(self._reread()))
            change = compare(self._reading, new)
            if change.refused:
                _say_refused(change)
                return False
            all_of_it = [await adoption(change) for adoption in self._adoptions]
        except ConfigError as error:
            _say_wrong(error)
            return False
        # Said before or after, so that no change of the level swallows it.
        is_said = _say_taken(change)
        for put_in_place in all_of_it:
            put_in_place()
        self._reading = new
        if not is_said:
            _say_taken(change)
        return True


def _say_wrong(error: ConfigError) -> None:
    for key, message in error.problems:
        logger.error("not reloaded: %s: %s", key, message, extra={"fields": {"key": key}})


def _say_refused(change: Change) -> None:
    logger.error(
        "not reloaded, a restart is needed: %s",
        ", ".join(change.refused),
        extra={"fields": {"keys": change.refused}},
    )


def _say_taken(change: Change) -> bool:
    """Say what takes effect; tells whether the level of the log lets it be heard."""
    what = ", ".join(change.taken) or "nothing has changed"
    logger.info("reloaded: %s", what, extra={"fields": {"keys": change.taken}})
    return logger.isEnabledFor(logging.INFO)
