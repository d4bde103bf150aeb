"""How single values of the configuration are written: sizes, durations, addresses, secrets.

One grammar each, read by `parse_*` and written back by `write_*`; what is written reads as the same
value again. A `parse_*` takes whatever TOML or JSON held and either returns the value or raises
`ValueRefused`, whose message says what was expected and never repeats what was found: a password
in the wrong place must not reach a log.

- Sizes: a whole number of bytes, or a number with a unit: `KiB MiB GiB TiB` are powers of 1024,
  `KB MB GB TB` powers of 1000.
- Durations: a number and one of `ms s m h d`; nothing finer than a millisecond. A bare number is
  refused, since nobody remembers which unit it is in.
- Rates: a whole number, `/`, and one of `s m h d`: so many at once, and as many again in that time.
- Addresses hold no credentials: those have keys of their own, which are redacted.
- An index address ends in a slash: cargo appends to it, and refuses one that does not.

What is not here: which keys there are (`config`), and where their values come from
(`config_sources`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Final, Self
from urllib.parse import SplitResult, urlsplit

from proxy.core.allowance import Rate

Network = IPv4Network | IPv6Network

SPARSE: Final = "sparse+"
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
_LISTEN: Final = re.compile(
    r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<name>[^:\[\]]+)):(?P<port>\d{1,5})", re.ASCII
)
_PORT_MAX: Final = 65535
_HOST_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]{0,62})(?:\.[a-z0-9_][a-z0-9_-]{0,62})*\.?",
    re.ASCII | re.IGNORECASE,
)
_NUMERIC_END: Final = re.compile(r"(?:.*\.)?\d+\.?", re.ASCII)
_IPV6_CHARACTERS: Final = re.compile(r"[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?", re.ASCII)
_URL_CHARACTERS: Final = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+", re.ASCII)
_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)*/*", re.ASCII)
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


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where to listen: a host name or address without brackets, and a port (0: the kernel's)."""

    host: str
    port: int

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read `127.0.0.1:8080`, `[::]:8080`, `localhost:0`. Raises ValueRefused."""
        match = _LISTEN.fullmatch(value) if isinstance(value, str) else None
        if match is not None and int(match["port"]) <= _PORT_MAX:
            name, v6 = match["name"], match["v6"]
            if (name is not None and _is_host(name)) or (v6 is not None and _is_ipv6(v6)):
                return cls(name or v6, int(match["port"]))
        raise ValueRefused(
            'expected "HOST:PORT", such as "127.0.0.1:8080", "[::]:8080" or "localhost:0"'
        )

    @property
    def is_loopback(self) -> bool:
        """Whether nobody on another machine can connect to it, as far as the name tells."""
        if self.host.lower().rstrip(".") == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_index(value: object) -> str:
    """Read the address of a sparse index, as cargo spells it. Raises ValueRefused."""
    text = parse_text(value)
    if not text.startswith((f"{SPARSE}http://", f"{SPARSE}https://")):
        raise ValueRefused(
            'expected a sparse index, "sparse+https://HOST/PATH/"; an index kept in git,'
            " which has no sparse+ in front, cannot be an upstream"
        )
    parts = _split_url(text.removeprefix(SPARSE))
    if not parts.path.endswith("/"):
        raise ValueRefused(
            "expected a slash at the end: cargo appends to it, and refuses an index without one"
        )
    return text


def parse_public_url(value: object) -> str:
    """Read an absolute address, with or without a path prefix; slashes at the end are dropped."""
    text = parse_text(value)
    parts = _split_url(text)
    if _PREFIX.fullmatch(parts.path) is None or {".", ".."} & set(parts.path.split("/")):
        raise ValueRefused("expected a path prefix of letters, digits, '.', '_', '~', '-' and '/'")
    return text.rstrip("/")


def parse_forward_proxy(value: object) -> str:
    """Read the address of an HTTP proxy. Raises ValueRefused."""
    text = parse_text(value)
    if _split_url(text).path not in ("", "/"):
        raise ValueRefused('expected no path: "http://HOST:PORT"')
    return text.removesuffix("/")


def _split_url(text: str) -> SplitResult:
    if not text.startswith(("http://", "https://")) or _URL_CHARACTERS.fullmatch(text) is None:
        raise ValueRefused("expected an absolute http:// or https:// address")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueRefused("expected a host, and a port between 1 and 65535 if any") from None
    if "@" in parts.netloc:
        raise ValueRefused("expected an address without a user name or a password")
    if "?" in text or "#" in text:
        raise ValueRefused("expected an address without '?' and '#'")
    is_bracketed = parts.netloc.startswith("[")
    if (
        not host
        or port == 0
        or parts.netloc.endswith(":")
        or not (_is_ipv6(host) if is_bracketed else _is_host(host))
    ):
        raise ValueRefused("expected a host, and a port between 1 and 65535 if any")
    return parts


def parse_network(value: object) -> Network:
    """Read a network or a single address. Raises ValueRefused."""
    if isinstance(value, str):
        try:
            return ip_network(value)
        except ValueError:
            pass
    raise ValueRefused(
        'expected a network without host bits, such as "10.0.0.0/8" or "fd00::/8", or an address'
    )


def parse_served_host(value: object) -> str:
    """Read a host name or address as a Host header has it, with or without a port."""
    text = value.lower() if isinstance(value, str) else ""
    if _is_host(text) or (text.startswith("[") and text.endswith("]") and _is_ipv6(text[1:-1])):
        return text
    try:
        return str(ListenAddress.parse(text))
    except ValueRefused:
        raise ValueRefused(
            'expected a host as clients write it, such as "crates.example.com",'
            ' "10.1.2.3:8080" or "[fd00::1]"'
        ) from None


def parse_reachable_host(value: object) -> str:
    """Read a host name, an address or a network. Raises ValueRefused."""
    text = value.lower() if isinstance(value, str) else ""
    if _is_host(text) or _is_ipv6(text):
        return text
    try:
        return str(parse_network(text))
    except ValueRefused:
        raise ValueRefused(
            'expected a host name, an address or a network, such as "files.example.com",'
            ' "10.1.2.3" or "10.1.0.0/16", without a port'
        ) from None


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


def parse_secret(value: object, environ: Mapping[str, str]) -> Secret:
    """Read `{ env = "NAME" }` or `{ file = "PATH" }`, and what it leads to. Raises ValueRefused."""
    if isinstance(value, str):
        raise ValueRefused(
            "a secret is not written into the configuration:"
            ' give it as { env = "NAME" } or { file = "PATH" }'
        )
    if not isinstance(value, dict) or len(value) != 1 or not value.keys() <= {"env", "file"}:
        raise ValueRefused('expected either { env = "NAME" } or { file = "PATH" }')
    if "file" in value:
        return _secret_of_file(parse_path(value["file"]))
    name = value["env"]
    if not isinstance(name, str) or _VARIABLE.fullmatch(name) is None:
        raise ValueRefused("expected the name of an environment variable in env")
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


def _is_host(text: str) -> bool:
    """Tell whether `text` is a host name or an IPv4 address; what ends in a number is one."""
    if _NUMERIC_END.fullmatch(text) is not None:
        try:
            return ip_address(text).version == 4  # noqa: PLR2004 - the protocol's own name
        except ValueError:
            return False
    return _HOST_NAME.fullmatch(text) is not None


def _is_ipv6(text: str) -> bool:
    if _IPV6_CHARACTERS.fullmatch(text) is None:
        return False
    try:
        return isinstance(ip_address(text), IPv6Address)
    except ValueError:
        return False
