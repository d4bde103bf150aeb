"""What is printed of the configuration: all of it without its secrets, and the client's half.

`redacted_toml` is a configuration that reads as the same settings: every key with the value in
effect, in TOML, a secret as the place it comes from. A key that has neither value nor default is a
comment that says what holds instead.

`cargo_config` is what a client pastes into `$CARGO_HOME/config.toml`. Cargo replaces a source by a
file alone, not by environment variables, and ignores `[registries.crates-io] index`. A replaced
source keeps its own address in `Cargo.toml` and `Cargo.lock`, so that a project builds with and
without us: for a registry other than crates.io that takes three tables (its name, its source, the
replacement). Cargo refuses a file that defines one source twice; two upstreams with one index
address share the tables of the first.
"""

import json
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Final

from pydantic import BaseModel

from proxy.config import CRATES_IO, ConfigError, Settings
from proxy.config_addresses import SPARSE, ListenAddress, parse_public_url
from proxy.config_sources import suggestion
from proxy.config_values import (
    ValueRefused,
)

_CRATES_IO_INDEX: Final = "sparse+https://index.crates.io/"
_PREAMBLE: Final = """\
# For $CARGO_HOME/config.toml, which is usually ~/.cargo/config.toml: cargo reads the
# replacement of a source from a file only, never from environment variables."""


def redacted(settings: Settings) -> dict[str, object]:
    """Return every key and the value in effect, as TOML and JSON have them; None: not set."""
    return settings.model_dump(mode="json", by_alias=True)


def redacted_toml(settings: Settings) -> str:
    """Write the settings as TOML."""
    lines: list[str] = []
    for section in type(settings).model_fields:
        value = getattr(settings, section)
        tables = {section: value}
        if isinstance(value, Mapping):
            tables = {f"{section}.{name}": one for name, one in value.items()}
        for header, model in tables.items():
            lines += [f"[{header}]", *_key_lines(model), ""]
    return "\n".join(lines[:-1]) + "\n"


def _key_lines(model: BaseModel) -> Iterator[str]:
    values = model.model_dump(mode="json", by_alias=True)
    for attribute, info in type(model).model_fields.items():
        key = info.alias or attribute
        if info.exclude:
            continue
        if values[key] is None:
            yield f"# {key} is not set: {info.description}"
        else:
            yield f"{key} = {_toml(values[key])}"


def _toml(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            # A JSON string is a TOML string, save for one character that TOML wants escaped.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list():
            return f"[{', '.join(_toml(one) for one in value)}]"
        case dict():
            return f"{{ {', '.join(f'{key} = {_toml(one)}' for key, one in value.items())} }}"
        case _:
            raise TypeError(f"no TOML for {type(value).__name__}")


def cargo_config(settings: Settings, base_url: str | None, registry: str | None) -> str:
    """Write what belongs into a client's `config.toml`, for one of our registries or for all.

    `base_url` is the address by which the client reaches us (`--url`); without it, the first
    `public_url`, or else the first listener. Raises ConfigError about `--url` or `--registry`.
    """
    base, warning = _base_url(settings, base_url)
    parts = [_PREAMBLE, *warning]
    defined: dict[str, str] = {_CRATES_IO_INDEX: CRATES_IO}
    taken = set(settings.upstreams)
    for name in _chosen(settings, registry):
        upstream = settings.registries[name].upstream
        ours = f"{SPARSE}{base}/{name}/index/"
        if upstream == CRATES_IO:
            parts.append(_crates_io(_unused("holdfast", taken), ours))
            continue
        index = settings.upstreams[upstream].index
        known = defined.setdefault(index, upstream)
        if known == upstream:
            parts.append(_named(upstream, index, _unused(f"holdfast-{upstream}", taken), ours))
        else:
            parts.append(_shared(upstream, index, known))
    return "\n\n".join(parts) + "\n"


def _base_url(settings: Settings, given: str | None) -> tuple[str, list[str]]:
    if given is not None:
        try:
            return parse_public_url(given), []
        except ValueRefused as refused:
            raise ConfigError((("--url", str(refused)),)) from None
    if settings.server.public_urls:
        return settings.server.public_urls[0], []
    listen = settings.server.listen[0]
    if listen.port == 0:
        message = "required, since the port is chosen only when the proxy starts (server.listen)"
        raise ConfigError((("--url", message),))
    reachable = _instead_of_unspecified(listen)
    if reachable == listen:
        return f"http://{listen}", []
    warning = (
        f"# The proxy listens on {listen}, which is nobody's address: clients on other machines\n"
        f"# need its name in place of {reachable.host} (server.public_url, or --url)."
    )
    return f"http://{reachable}", [warning]


def _instead_of_unspecified(listen: ListenAddress) -> ListenAddress:
    try:
        address = ip_address(listen.host)
    except ValueError:
        return listen
    if not address.is_unspecified:
        return listen
    return ListenAddress("::1" if ":" in listen.host else "127.0.0.1", listen.port)


def _chosen(settings: Settings, registry: str | None) -> list[str]:
    if registry is None:
        return [name for name in settings.registries if name in settings.upstreams]
    if registry not in settings.registries:
        message = f"there is no such registry{suggestion(registry, settings.registries)}"
        raise ConfigError((("--registry", message),))
    return [registry]


def _unused(name: str, taken: set[str]) -> str:
    """Return a name for a replacement that neither an upstream nor another replacement has."""
    while name in taken:
        name += "-proxy"
    taken.add(name)
    return name


def _crates_io(replacement: str, ours: str) -> str:
    return f"""\
# crates.io, read through the proxy. Cargo.lock goes on naming crates.io.
[source.crates-io]
replace-with = {_toml(replacement)}

[registries.{replacement}]
index = {_toml(ours)}"""


def _named(name: str, index: str, replacement: str, ours: str) -> str:
    return f"""\
# {name}: Cargo.toml says registry = {_toml(name)}, and Cargo.lock keeps this address,
[registries.{name}]
index = {_toml(index)}

# while cargo reads it from elsewhere:
[source.{name}]
registry = {_toml(index)}
replace-with = {_toml(replacement)}

# the proxy. Commands that talk to a registry itself (search, publish, yank, owner) come through
# it with --registry {replacement}; with --registry {name} they pass it by.
[registries.{replacement}]
index = {_toml(ours)}"""


def _shared(name: str, index: str, other: str) -> str:
    return f"""\
# {name} has the address of {other}, and comes from where that comes from.
[registries.{name}]
index = {_toml(index)}"""
