"""The credentials for one upstream: a value, and the file that may hold a newer one.

Tokens of some registries live for hours, and whoever renews them writes a file. After a 401 that
file is read again; if it says something else, the request is worth one more try.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiofiles

_MAX_CHARS: Final = 64 * 1024


@dataclass(slots=True)
class Credentials:
    """The Authorization header's value, verbatim; None for an upstream that wants none.

    `parse` reads the text of `file` and raises ValueError for what cannot be a header's value.
    """

    value: str | None
    file: Path | None = None
    parse: Callable[[str], str] = str.strip
    _replacements: int = field(default=0, init=False)

    def replace(
        self, value: str | None, file: Path | None = None, parse: Callable[[str], str] = str.strip
    ) -> None:
        """Take other credentials, for the requests to come."""
        self.value, self.file, self.parse = value, file, parse
        self._replacements += 1

    async def renew(self, refused: str | None) -> bool:
        """Read the file again; tells whether there is another value than the one refused.

        A file that is gone, unreadable or half written leaves the value as it is.
        """
        if self.value != refused:
            return True
        if self.file is None:
            return False
        replacements = self._replacements
        try:
            async with aiofiles.open(self.file, encoding="ascii", errors="replace") as file:
                text = await file.read(_MAX_CHARS)
            value = self.parse(text)
        except (OSError, ValueError):
            return False
        if self._replacements != replacements:
            # What was read is of the old file, or of an old state of it.
            return self.value != refused
        self.value = value
        # Compared with what was refused: somebody else may have read the file meanwhile.
        return value != refused

    def __repr__(self) -> str:
        return f"Credentials(file={self.file!r})"
