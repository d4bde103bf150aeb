"""How single values of the configuration are written: sizes, durations, paths, secrets.

One grammar each, read by `parse_*` and written back by `write_*`; what is written reads as the same
value again. A `parse_*` takes whatever TOML or JSON held and either returns the value or raises
`ValueRefused`, whose message says what was expected and never repeats what was found: a password
in the wrong place must not reach a log.

- Sizes: a whole number of bytes, or a number with a unit: `KiB MiB GiB TiB` are powers of 1024,
  `KB MB GB TB` powers of 1000.
- Durations: a number and one of `ms s m h d`; nothing finer than a millisecond. A bare number is
  refused, since nobody remembers which unit it is in.
- Rates: a whole number, `/`, and one of `s m h d`: so many at once, and as many again in that time.

What is not here: addresses (`config_addresses`), which keys there are (`config`), and where their
values come from (`config_sources`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Final

from proxy.core.allowance import Rate

_SIZE: Final = re.compile(r"(\d{1,19}(?:\.\d{1,9})?) ?(B|[KMGT]i?B)?", re.ASCII)
_SIZE_UNITS: Final = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_SIZE_MAX_BYTES: Final = 2**63 - 1  # what SQLite and TOML can hold
_PERCENT: Final = re.compile(r"(\d{1,2}(?:\.\d{1,2})?) ?%", re.ASCII)
_DURATION: Final = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) ?(ms|s|m|h|d)", re.ASCII)
_DURATION_UNITS_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION_MAX_MS: Final = 3650 * _DURATION_UNITS_MS["d"]
_COUNT_MAX: Final = 1_000_000
_RATE: Final = re.compile(r"(\d{1,7}) ?/ ?([smhd])", re.ASCII)
# What may stand in a User-Agent's comment (RFC 9110, section 10.1.5).
_COMMENT: Final = re.compile(r"[\x20-\x27\x2a-\x5b\x5d-\x7e]{1,200}", re.ASCII)
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e]+", re.ASCII)
_SECRET_MAX_CHARS: Final = 16 * 1024
_NEVER_ABSENT: Final = (408, 425, 429)


class ValueRefused(ValueError):
    """A value is not one that its key takes; the message says what would be."""


def parse_text(value: object) -> str:
    """Return a string that can be written down again. Raises ValueRefused."""
    if not isinstance(value, str):
        raise ValueRefused("expected a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueRefused("expected text in UTF-8") from None
    return value


def parse_size(value: object) -> int:
    """Read a size in bytes. Raises ValueRefused."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ValueRefused('expected a size, such as "100GiB", "64MiB", "500MB" or 1048576')
        size = int(Decimal(match[1]) * _SIZE_UNITS[match[2] or "B"])
    if not 0 <= size <= _SIZE_MAX_BYTES:
        raise ValueRefused("expected a size between 0 and 8388607TiB")
    return size


def parse_positive_size(value: object) -> int:
    """Read a size of at least one byte. Raises ValueRefused."""
    size = parse_size(value)
    if size == 0:
        raise ValueRefused("expected a size above 0")
    return size


def write_size(size_bytes: int) -> str | int:
    """Write a size with the largest binary unit that expresses it exactly."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        count, rest = divmod(size_bytes, _SIZE_UNITS[unit])
        if count and not rest:
            return f"{count}{unit}"
    return size_bytes


def parse_count(value: object) -> int:
    """Read how many of something there may be. Raises ValueRefused."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _COUNT_MAX:
        return value
    raise ValueRefused(f"expected a whole number between 1 and {_COUNT_MAX}")


def parse_rate(value: object) -> Rate:
    """Read how many there may be in which time. Raises ValueRefused."""
    match = _RATE.fullmatch(value) if isinstance(value, str) else None
    if match is None or not 1 <= int(match[1]) <= _COUNT_MAX:
        raise ValueRefused(
            f'expected a rate of 1 to {_COUNT_MAX}, such as "600/m", "10/s" or "5000/h"'
        )
    return Rate(int(match[1]), _DURATION_UNITS_MS[match[2]] / 1000)


def write_rate(rate: Rate) -> str:
    """Write a rate as it was read."""
    units = {ms / 1000: unit for unit, ms in _DURATION_UNITS_MS.items()}
    return f"{rate.count}/{units[rate.period_s]}"


@dataclass(frozen=True, slots=True)
class MinFree:
    """How much of a file system stays free: so many bytes, or a share of its size."""

    size_bytes: int = 0
    percent: float = 0.0

    def of(self, total_bytes: int) -> int:
        """Return the bytes that stay free on a file system of `total_bytes`."""
        hundredths = round(self.percent * 100)  # what can be written; integers stay exact
        return max(self.size_bytes, total_bytes * hundredths // 10_000)


def parse_min_free(value: object) -> MinFree:
    """Read a size or a percentage below 100. Raises ValueRefused."""
    match = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    if match is not None:
        return MinFree(percent=float(match[1]))
    try:
        return MinFree(size_bytes=parse_size(value))
    except ValueRefused:
        raise ValueRefused(
            'expected a share below 100 %, such as "5%", or a size, such as "2GiB"'
        ) from None


def write_min_free(min_free: MinFree) -> str | int:
    """Write what `parse_min_free` reads."""
    if min_free.percent:
        return f"{min_free.percent:g}%"
    return write_size(min_free.size_bytes)


def parse_duration(value: object) -> float:
    """Read a duration in seconds. Raises ValueRefused."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueRefused('expected a duration with its unit, such as "500ms", "25s", "1h", "7d"')
    duration_ms = Decimal(match[1]) * _DURATION_UNITS_MS[match[2]]
    if duration_ms != int(duration_ms) or duration_ms > _DURATION_MAX_MS:
        raise ValueRefused("expected whole milliseconds, and at most 3650d")
    return int(duration_ms) / 1000


def parse_positive_duration(value: object) -> float:
    """Read a duration above zero. Raises ValueRefused."""
    duration = parse_duration(value)
    if duration == 0:
        raise ValueRefused("expected a duration above 0s")
    return duration


def write_duration(duration_s: float) -> str:
    """Write a duration as people say it: `60s` and `7d`, but neither `1m` nor `168h`."""
    duration_ms = round(duration_s * 1000)
    for unit in ("d", "h", "m"):
        count, rest = divmod(duration_ms, _DURATION_UNITS_MS[unit])
        if count > 1 and not rest:
            return f"{count}{unit}"
    seconds, rest = divmod(duration_ms, 1000)
    return f"{duration_ms}ms" if rest else f"{seconds}s"


def parse_absent_status(value: object) -> int:
    """Read a status that may mean "there is no such crate". Raises ValueRefused."""
    if isinstance(value, bool) or not isinstance(value, int) or not 400 <= value <= 499:  # noqa: PLR2004
        raise ValueRefused("expected a status between 400 and 499")
    if value in _NEVER_ABSENT:
        raise ValueRefused("408, 425 and 429 mean 'try again later', never 'does not exist'")
    return value


def parse_contact(value: object) -> str:
    """Read what may go into a User-Agent. Raises ValueRefused."""
    text = parse_text(value)
    if _COMMENT.fullmatch(text) is None:
        raise ValueRefused(
            "expected 1 to 200 printable ASCII characters without parentheses and backslashes"
        )
    return text


def parse_path(value: object) -> Path:
    """Read a path and make it absolute. Raises ValueRefused."""
    text = parse_text(value)
    if not text or "\0" in text:
        raise ValueRefused("expected a path")
    if text.startswith("~"):
        raise ValueRefused("'~' is not expanded here: write the whole path")
    try:
        return Path(text).absolute()
    except OSError:
        raise ValueRefused("expected an absolute path: there is no working directory") from None


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A value for an Authorization header, and where it came from. Printing it shows the latter."""

    env: str | None
    file: Path | None
    _value: str = field(repr=False)

    def reveal(self) -> str:
        """Return the value, verbatim."""
        return self._value

    @staticmethod
    def parse(text: str) -> str:
        """Read a secret from the text of its file. Raises ValueRefused."""
        return _header_value(text, "the file")

    def reread(self) -> "Secret":
        """Return the secret as its file has it now; one from the environment stays as it is.

        Reads a small file, blocking. Raises ValueRefused.
        """
        return self if self.file is None else _secret_of_file(self.file)

    def __repr__(self) -> str:
        source = f"env={self.env!r}" if self.file is None else f"file={str(self.file)!r}"
        return f"Secret({source})"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the certificate chain and its private key are, in PEM."""

    certificate: Path
    key: Path


def parse_tls(value: object) -> TlsFiles:
    """Read `{ certificate = "PATH", key = "PATH" }`; the files are opened where they are used."""
    if not isinstance(value, dict) or value.keys() != {"certificate", "key"}:
        raise ValueRefused('expected { certificate = "PATH", key = "PATH" }')
    return TlsFiles(parse_path(value["certificate"]), parse_path(value["key"]))


def write_tls(files: TlsFiles | None) -> dict[str, str] | None:
    """Write where certificate and key are."""
    if files is None:
        return None
    return {"certificate": str(files.certificate), "key": str(files.key)}


def parse_secret(value: object, environ: Mapping[str, str] | None) -> Secret:
    """Read `{ env = "NAME" }` or `{ file = "PATH" }`, and what it leads to. Raises ValueRefused.

    Without an environment the place alone is read, and the secret is empty.
    """
    if isinstance(value, str):
        raise ValueRefused(
            "a secret is not written into the configuration:"
            ' give it as { env = "NAME" } or { file = "PATH" }'
        )
    if not isinstance(value, dict) or len(value) != 1 or not value.keys() <= {"env", "file"}:
        raise ValueRefused('expected either { env = "NAME" } or { file = "PATH" }')
    if "file" in value:
        path = parse_path(value["file"])
        return Secret(None, path, "") if environ is None else _secret_of_file(path)
    name = value["env"]
    if not isinstance(name, str) or _VARIABLE.fullmatch(name) is None:
        raise ValueRefused("expected the name of an environment variable in env")
    if environ is None:
        return Secret(name, None, "")
    if name not in environ:
        raise ValueRefused("the environment variable that env names is not set")
    return Secret(name, None, _header_value(environ[name], "the environment variable"))


def write_secret(secret: Secret) -> dict[str, str]:
    """Write where a secret comes from."""
    if secret.file is not None:
        return {"file": str(secret.file)}
    return {"env": secret.env or ""}


def _secret_of_file(path: Path) -> Secret:
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            text = file.read(_SECRET_MAX_CHARS + 1)
    except OSError as error:
        raise ValueRefused(f"the file cannot be read: {error.strerror}") from None
    return Secret(None, path, _header_value(text, "the file"))


def _header_value(text: str, source: str) -> str:
    value = text.strip(" \t\r\n")
    if len(text) > _SECRET_MAX_CHARS or _HEADER_VALUE.fullmatch(value) is None:
        raise ValueRefused(f"{source} holds no single line of printable ASCII")
    return value
