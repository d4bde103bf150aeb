"""What the operator decided, complete and consistent: `load` makes it, or says all that is wrong.

A TOML file, the environment and the command line's options become `Settings`, or one `ConfigError`
with every problem under the key as the user wrote it. No file at all is a valid configuration:
crates.io on 127.0.0.1:8080. The rules between keys are here:

- `[upstreams.crates-io]` is always there; what it leaves out are crates.io's values.
- Every upstream has a registry of its own name; another registry is an alias of one upstream.
- A client certificate and its key come together.
- No upstream is its own mirror.
- Where a token would let anybody on the network read a private registry, `access` must be written.

What is not here: the keys themselves (`config_keys`), how values are written (`config_values`,
`config_addresses`), where they come from (`config_sources`), and what is printed (`config_show`).
Certificates are opened where they are used. The environment is an argument, save that the user's
own folders are platformdirs' word; `load` opens the file it is given, and those that hold secrets.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

from platformdirs import user_cache_path, user_state_path
from pydantic import BaseModel, ValidationError

from proxy.config_keys import (
    CacheSettings,
    LimitsSettings,
    LogSettings,
    RegistrySettings,
    ServerSettings,
    Settings,
    StateSettings,
    UpstreamSettings,
    key_shapes,
)
from proxy.config_sources import (
    PREFIX,
    Location,
    Problem,
    Sources,
    Table,
    read_environment,
    read_file,
    suggestion,
)
from proxy.core.names import is_registry_name

__all__ = [
    "CRATES_IO",
    "NO_OVERRIDES",
    "CacheSettings",
    "ConfigError",
    "LimitsSettings",
    "LogSettings",
    "Overrides",
    "RegistrySettings",
    "ServerSettings",
    "Settings",
    "StateSettings",
    "UpstreamSettings",
    "load",
]

CRATES_IO: Final = "crates-io"
_CRATES_IO_DEFAULTS: Final = MappingProxyType(
    {
        "index": "sparse+https://index.crates.io/",
        "fresh_for": "60s",
        "stale_while_revalidate": "60s",
        # Its policy for crawlers, which a proxy for many should keep to.
        "api_interval": "1s",
    }
)
_NAME_MAX_CHARS: Final = 64
_NOT_A_REGISTRY: Final = frozenset({"healthz", "readyz", "metrics"})
_MESSAGES: Final = MappingProxyType(
    {
        "bool_type": "expected true or false",
        "string_type": "expected a string",
        "string_unicode": "expected text in UTF-8",
        "tuple_type": "expected a list",
        "frozen_set_type": "expected a list",
    }
)
_M = TypeVar("_M", bound=BaseModel)


class ConfigError(Exception):
    """The configuration cannot be used; `problems` are pairs of a key as written and a message."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(f"{key}: {message}" for key, message in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the options of the command line say, over file and environment.

    `listen` and `cache_dir` are `--listen` and `--cache-dir`, not given if empty or None.
    `offline` makes every upstream offline.
    """

    listen: tuple[str, ...] = ()
    cache_dir: str | None = None
    offline: bool = False


NO_OVERRIDES: Final = Overrides()


def load(
    path: Path | None,
    environ: Mapping[str, str],
    overrides: Overrides = NO_OVERRIDES,
    *,
    secrets: bool = True,
) -> Settings:
    """Read the configuration. Raises ConfigError, and nothing else, with all that is wrong.

    Without `secrets` they are left where they are, and are empty: for what asks no upstream.
    """
    shapes, sources = key_shapes(), Sources()
    if path is not None:
        read_file(path, shapes, sources)
    read_environment(environ, shapes, sources)
    _override(sources, overrides)
    reading = _Reading(sources, environ if secrets else None)
    settings = reading.settings(offline=overrides.offline)
    if sources.problems or settings is None:
        raise ConfigError(tuple(dict.fromkeys(sources.problems)))
    return settings


def _override(sources: Sources, overrides: Overrides) -> None:
    if overrides.listen:
        sources.put(("server", "listen"), list(overrides.listen), "--listen")
    if overrides.cache_dir is not None:
        sources.put(("cache", "dir"), overrides.cache_dir, "--cache-dir")


class _Reading:
    """One pass over the tree of raw values: every problem is noted, whatever else is wrong."""

    def __init__(self, sources: Sources, environ: Mapping[str, str] | None) -> None:
        self._sources = sources
        self._environ = environ

    def settings(self, *, offline: bool) -> Settings | None:
        """Return the settings, or None with the problems noted in the sources."""
        for section in self._sources.tree:
            if section not in Settings.model_fields:
                self._note((section,), "there is no such section", Settings.model_fields)
        server = self._model(ServerSettings, ("server",), self._table("server"))
        cache = self._model(CacheSettings, ("cache",), self._placed("cache", user_cache_path))
        state = self._model(StateSettings, ("state",), self._placed("state", user_state_path))
        limits = self._model(LimitsSettings, ("limits",), self._table("limits"))
        log = self._model(LogSettings, ("log",), self._table("log"))
        upstream_tables = self._upstream_tables(offline=offline)
        registry_tables = self._registry_tables(upstream_tables)
        upstreams = self._models(UpstreamSettings, "upstreams", upstream_tables)
        registries = self._models(RegistrySettings, "registries", registry_tables)
        self._check_certificates(upstream_tables)
        self._check_mirrors(upstreams)
        self._check_members(registries, upstream_tables)
        if server is not None:
            self._check_listeners(server)
            self._check_exposure(server, registries, upstream_tables)
        if not (server and cache and state and limits and log) or self._sources.problems:
            return None
        return Settings(
            server=server,
            cache=cache,
            state=state,
            limits=limits,
            log=log,
            upstreams=upstreams,
            registries=registries,
        )

    def _note(self, location: Location, message: str, known: Iterable[str] = ()) -> None:
        if known and isinstance(word := location[-1], str):
            message += suggestion(word, known)
        self._sources.problems.append((self._sources.key(location), message))

    def _table(self, section: str) -> Table:
        table = self._sources.tree.get(section, {})
        if isinstance(table, dict):
            return table
        self._note((section,), f"expected a table, [{section}]")
        return {}

    def _placed(self, section: str, default: Callable[[str, Literal[False]], Path]) -> Table:
        table = self._table(section)
        if "dir" in table:
            return table
        try:
            place = str(default("holdfast", False))
        except RuntimeError:
            place = "~"
        if place.startswith("~"):
            self._note((section, "dir"), "write one: this user has no home directory")
            place = "/"
        return {**table, "dir": place}

    def _named_tables(self, section: str) -> dict[str, Table]:
        tables: dict[str, Table] = {}
        for name, table in self._table(section).items():
            if not is_registry_name(name) or len(name) > _NAME_MAX_CHARS:
                self._note(
                    (section, name),
                    "expected a name of at most 64 lower-case letters, digits and '-',"
                    " not beginning with '-'",
                )
            elif name in _NOT_A_REGISTRY:
                self._note((section, name), f"/{name} is an address of ours: choose another name")
            elif not isinstance(table, dict):
                self._note((section, name), f"expected a table, [{section}.{name}]")
            else:
                tables[name] = table
        return tables

    def _upstream_tables(self, *, offline: bool) -> dict[str, Table]:
        given = self._named_tables("upstreams")
        tables = {CRATES_IO: {**_CRATES_IO_DEFAULTS, **given.pop(CRATES_IO, {})}, **given}
        if offline:
            return {name: {**table, "offline": True} for name, table in tables.items()}
        return tables

    def _registry_tables(self, upstreams: Mapping[str, Table]) -> dict[str, Table]:
        given = self._named_tables("registries")
        own = {name: {"upstreams": [name], **given.pop(name, {})} for name in upstreams}
        return {**own, **given}

    def _models(self, model: type[_M], section: str, tables: Mapping[str, Table]) -> dict[str, _M]:
        models = {name: self._model(model, (section, name), raw) for name, raw in tables.items()}
        return {name: one for name, one in models.items() if one is not None}

    def _model(self, model: type[_M], at: Location, raw: Table) -> _M | None:
        try:
            return model.model_validate(raw, context=self._environ)
        except ValidationError as error:
            for detail in error.errors(include_url=False, include_input=False):
                location = at + detail["loc"]
                match detail["type"]:
                    case "extra_forbidden":
                        known = [info.alias or name for name, info in model.model_fields.items()]
                        self._note(location, "there is no such key", known)
                    case "missing":
                        self._note(location, "this key is required" + self._written_at(at))
                    case "tuple_type" | "frozen_set_type" if self._is_variable(location):
                        self._note(location, 'expected a list in JSON, such as ["one", "two"]')
                    case kind:
                        self._note(location, _message(kind, detail.get("ctx", {})))
            return None

    def _is_variable(self, location: Location) -> bool:
        return self._sources.key(location).startswith(PREFIX)

    def _written_at(self, at: Location) -> str:
        """Say which variables alone made a table: one of them may be a typing error."""
        origins = self._sources.origins_below(at)
        return f" (with {', '.join(origins)})" if origins else ""

    def _check_certificates(self, upstreams: Mapping[str, Table]) -> None:
        for name, table in upstreams.items():
            for one, other in (("client_cert", "client_key"), ("client_key", "client_cert")):
                if one in table and other not in table:
                    self._note(
                        ("upstreams", name, one), f"{other} is required too: they come together"
                    )

    def _check_mirrors(self, upstreams: Mapping[str, UpstreamSettings]) -> None:
        for name, upstream in upstreams.items():
            if upstream.index_url in upstream.mirror_urls:
                self._note(("upstreams", name, "mirrors"), "its own index is no mirror of it")

    def _check_members(
        self, registries: Mapping[str, RegistrySettings], upstreams: Mapping[str, Table]
    ) -> None:
        for name, registry in registries.items():
            location = ("registries", name, "upstreams")
            if registry.upstream not in upstreams:
                self._note(location, "there is no such upstream", upstreams)
            elif name in upstreams and registry.upstream != name:
                self._note(location, f'expected ["{name}"], the upstream of the same name')

    def _check_listeners(self, server: ServerSettings) -> None:
        fixed = [address for address in server.listen if address.port]
        if len(set(fixed)) < len(fixed):
            self._note(("server", "listen"), "one address is there twice")
        if server.admin_listen in fixed:
            self._note(("server", "admin_listen"), "this address is in server.listen too")

    def _check_exposure(
        self,
        server: ServerSettings,
        registries: Mapping[str, RegistrySettings],
        upstreams: Mapping[str, Table],
    ) -> None:
        beyond = [str(address) for address in server.listen if not address.is_loopback]
        if not beyond:
            return
        for name, registry in registries.items():
            if registry.access is None and "token" in upstreams.get(registry.upstream, {}):
                self._note(
                    ("registries", name, "access"),
                    f"upstreams.{registry.upstream} has a token, and {', '.join(beyond)} can be"
                    " reached from other machines, so that all of them could read it: write"
                    ' access = "open" if they may, or listen on 127.0.0.1',
                )


def _message(kind: str, context: Mapping[str, Any]) -> str:
    """Say what was expected, in the user's words; never what was found."""
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"expected {context['expected']}".replace("'", '"')
    return _MESSAGES.get(kind, "this value cannot be used")
