"""What differs between two configurations, key by key, and which of it a running proxy may take on.

Every key is decided here, once: `RELOADED` ones take effect while the proxy runs, `RESTART` ones
are refused by name. A key that is in neither table is refused too, and fails a test. Tables of an
upstream or a registry that come or go need a restart.

A certificate may change while the key that names its file does not, so a `Reading` has what the
files held beside the settings. Tokens are part of the settings.

What is not here: how a change takes effect (`proxy.compose` and `proxy.serve`, by `Adoption`s), and
when it is looked for (`proxy.reload`).
"""

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self

from pydantic import BaseModel

from proxy.config import Settings
from proxy.config_keys import NAMED_SECTIONS, PLAIN_SECTIONS

RELOADED: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "server": frozenset({"tls"}),
        "cache": frozenset({"max_size", "min_free"}),
        "limits": frozenset(
            {
                "index",
                "crate",
                "connections",
                "client_requests",
                "client_misses",
                "registry_requests",
                "registry_misses",
            }
        ),
        "log": frozenset({"level"}),
        "upstreams": frozenset(
            {
                "token",
                "fresh_for",
                "stale_while_revalidate",
                "stale_if_error",
                "ca_file",
                "client_cert",
                "client_key",
            }
        ),
    }
)
RESTART: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "server": frozenset(
            {
                "listen",
                "admin_listen",
                "public_url",
                "allowed_hosts",
                "trusted_proxies",
                "h2c",
                "drain",
                "contact",
            }
        ),
        "cache": frozenset({"dir", "memory"}),
        "state": frozenset({"dir"}),
        "log": frozenset({"format"}),
        "upstreams": frozenset(
            {
                "index",
                "offline",
                "mirrors",
                "allow_hosts",
                "absent_statuses",
                "proxy",
                "connections",
                "connect_timeout",
                "idle_timeout",
                "api_interval",
                # Promised to be reloaded, and not available yet: they move to `RELOADED` together
                # with the adoption that gives them an effect.
                "owns",
                "publish_token",
            }
        ),
        "registries": frozenset({"upstreams", "access"}),
    }
)
_FILES_OF_AN_UPSTREAM: Final = ("ca_file", "client_cert", "client_key")
_TLS: Final = "server.tls"


@dataclass(frozen=True, slots=True)
class Reading:
    """A configuration as it was read: the settings, and digests of what its certificates held.

    `contents` has the keys that name such files; None where there is no file that can be read.
    """

    settings: Settings
    contents: Mapping[str, str | None]

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Read the files that `settings` name. Blocks for as long as the disk takes.

        To be called before the files are put to use: what changes in between is noticed next time.
        """
        return cls(settings, {key: _digest(files) for key, files in _files(settings)})


@dataclass(frozen=True, slots=True)
class Change:
    """What a new configuration changes, by key in the order of the tables.

    `taken` may take effect at once, `refused` needs a restart.
    """

    settings: Settings
    taken: tuple[str, ...]
    refused: tuple[str, ...]

    def touches(self, *keys: str) -> bool:
        """Tell whether one of `keys` is among those that take effect."""
        return not frozenset(keys).isdisjoint(self.taken)


# One part of the program and what it takes on. It looks at a change, reads and builds what it
# needs (raising ConfigError where that cannot be had), and returns what puts it in place: without
# waiting and without failing.
Adoption = Callable[[Change], Awaitable[Callable[[], None]]]


def compare(old: Reading, new: Reading) -> Change:
    """Say what is different in `new`, and what of it may take effect."""
    taken: list[str] = []
    refused: list[str] = []
    for section, name, key in _different(old, new):
        at = ".".join(part for part in (section, name, key) if part)
        if key in RELOADED.get(section, ()) and not _turns_tls(at, old.settings, new.settings):
            taken.append(at)
        else:
            refused.append(at)
    return Change(new.settings, tuple(taken), tuple(refused))


def _different(old: Reading, new: Reading) -> Iterator[tuple[str, str, str]]:
    """Yield section, name and key of what differs; no key where a whole table came or went."""
    for section in PLAIN_SECTIONS:
        before, after = getattr(old.settings, section), getattr(new.settings, section)
        yield from ((section, "", key) for key in _keys(section, before, after, old, new))
    came_or_went = old.settings.upstreams.keys() ^ new.settings.upstreams.keys()
    for section in NAMED_SECTIONS:
        befores, afters = getattr(old.settings, section), getattr(new.settings, section)
        for name in dict.fromkeys((*befores, *afters)):
            if name in befores and name in afters:
                keys = _keys(f"{section}.{name}", befores[name], afters[name], old, new)
                yield from ((section, name, key) for key in keys)
            elif section == "upstreams" or name not in came_or_went:
                # The registry of an upstream's own name comes and goes with it, unwritten.
                yield section, name, ""


def _keys(at: str, before: BaseModel, after: BaseModel, old: Reading, new: Reading) -> list[str]:
    keys = {info.alias or name: name for name, info in type(before).model_fields.items()}
    return [
        key
        for key, name in keys.items()
        if getattr(before, name) != getattr(after, name)
        or old.contents.get(f"{at}.{key}") != new.contents.get(f"{at}.{key}")
    ]


def _turns_tls(key: str, old: Settings, new: Settings) -> bool:
    """Tell whether the listeners would begin or cease to speak TLS: those that are open cannot."""
    return key == _TLS and (old.server.tls is None) != (new.server.tls is None)


def _files(settings: Settings) -> Iterator[tuple[str, tuple[Path, ...]]]:
    tls = settings.server.tls
    if tls is not None:
        yield _TLS, (tls.certificate, tls.key)
    for name, upstream in settings.upstreams.items():
        for key in _FILES_OF_AN_UPSTREAM:
            file = getattr(upstream, key)
            if file is not None and not upstream.offline:
                yield f"upstreams.{name}.{key}", (file,)


def _digest(files: Iterable[Path]) -> str | None:
    digest = hashlib.sha256()
    try:
        for file in files:
            # Reading from a pipe would take away what it is to be used for.
            if not file.is_file():
                return None
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    except OSError:
        return None
    return digest.hexdigest()
