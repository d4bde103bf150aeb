"""Every key of the configuration: its type, its default, and what it means where it is not set.

The models name their attributes for the program (`fresh_for_s`, in seconds) and their aliases for
the user (`fresh_for`, with a unit). The aliases are a contract, as are the defaults. A description
says what holds where there is no default to show.

Keys that the contract promises and this version lacks are here too, and take no value: to ignore
them would open what they were meant to close.

What is not here: the rules between keys, and the defaults that depend on a name (`config`).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Annotated, Final, Literal, Never, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    Strict,
    ValidationInfo,
)

from proxy.config_addresses import (
    SPARSE,
    ListenAddress,
    Network,
    parse_forward_proxy,
    parse_index,
    parse_network,
    parse_public_url,
    parse_reachable_host,
    parse_served_host,
)
from proxy.config_sources import Kind, Shapes
from proxy.config_values import (
    MinFree,
    Secret,
    TlsFiles,
    ValueRefused,
    parse_absent_status,
    parse_contact,
    parse_count,
    parse_duration,
    parse_min_free,
    parse_path,
    parse_positive_duration,
    parse_positive_size,
    parse_rate,
    parse_secret,
    parse_size,
    parse_tls,
    write_duration,
    write_min_free,
    write_rate,
    write_secret,
    write_size,
    write_tls,
)
from proxy.core.allowance import Rate

_CONNECTIONS_MAX: Final = 10_000
_KINDS: Final[Mapping[object, Kind]] = MappingProxyType(
    {Path: Kind.PATH, bool: Kind.FLAG, int: Kind.NUMBER, tuple: Kind.LIST, frozenset: Kind.LIST}
)
_T = TypeVar("_T")


def _absent(what: str) -> Callable[[object], Never]:
    def refuse(_value: object) -> Never:
        raise ValueRefused(f"{what} not available in this version")

    return refuse


def _distinct(values: tuple[_T, ...]) -> tuple[_T, ...]:
    if len(set(values)) != len(values):
        raise ValueRefused("one of them is there twice")
    return values


def _access(value: object) -> Literal["open"]:
    if value == "open":
        return "open"
    if value in ("token", "upstream"):
        raise ValueRefused(f'access = "{value}" is not available in this version; expected "open"')
    raise ValueRefused('expected "open"')


def _token(value: object, info: ValidationInfo) -> Secret:
    return parse_secret(value, info.context if isinstance(info.context, Mapping) else None)


def _connections(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _CONNECTIONS_MAX:
        return value
    raise ValueRefused(f"expected a whole number between 1 and {_CONNECTIONS_MAX}")


def _not_empty(values: _T) -> _T:
    if not values:
        raise ValueRefused("expected at least one")
    return values


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _one_upstream(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) > 1:
        raise ValueRefused(
            "a registry made of several upstreams is not available in this version; expected one"
        )
    return _not_empty(names)


_Size = Annotated[int, PlainValidator(parse_size), PlainSerializer(write_size)]
_PositiveSize = Annotated[int, PlainValidator(parse_positive_size), PlainSerializer(write_size)]
_Duration = Annotated[float, PlainValidator(parse_duration), PlainSerializer(write_duration)]
_PositiveDuration = Annotated[
    float, PlainValidator(parse_positive_duration), PlainSerializer(write_duration)
]
_Count = Annotated[int, PlainValidator(parse_count)]
_Rate = Annotated[Rate, PlainValidator(parse_rate), PlainSerializer(write_rate)]
_FilePath = Annotated[Path, PlainValidator(parse_path), PlainSerializer(str)]
_Listen = Annotated[ListenAddress, PlainValidator(ListenAddress.parse), PlainSerializer(str)]
_Statuses = Annotated[
    frozenset[Annotated[int, PlainValidator(parse_absent_status)]],
    Strict(strict=False),
    AfterValidator(_not_empty),
    PlainSerializer(sorted),
]
_Network = Annotated[Network, PlainValidator(parse_network), PlainSerializer(str)]
# Pydantic's strict mode knows no list in place of a tuple; the members are strict by themselves.
_List = Strict(strict=False)


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


class ServerSettings(_Section):
    """`[server]`: where clients reach us."""

    listen: Annotated[tuple[_Listen, ...], _List, AfterValidator(_not_empty)] = (
        ListenAddress("127.0.0.1", 8080),
    )
    admin_listen: _Listen | None = Field(None, description="there is no port of its own")
    public_urls: Annotated[
        tuple[Annotated[str, PlainValidator(parse_public_url)], ...],
        _List,
        BeforeValidator(_one_or_more),
    ] = Field((), alias="public_url")
    allowed_hosts: Annotated[
        tuple[Annotated[str, PlainValidator(parse_served_host)], ...], _List
    ] = ()
    trusted_proxies: Annotated[tuple[_Network, ...], _List] = ()
    h2c: bool = True
    tls: Annotated[TlsFiles, PlainValidator(parse_tls), PlainSerializer(write_tls)] | None = Field(
        None, description="clients are spoken to in cleartext"
    )
    drain_s: _Duration = Field(25.0, alias="drain")
    contact: Annotated[str, PlainValidator(parse_contact)] | None = Field(
        None, description="upstreams are not told whom to write to"
    )


class CacheSettings(_Section):
    """`[cache]`: what can be fetched again."""

    dir: _FilePath
    max_size_bytes: _PositiveSize | None = Field(
        None, alias="max_size", description="the smaller of 50 GiB and 80 % of what is free"
    )
    min_free: Annotated[
        MinFree, PlainValidator(parse_min_free), PlainSerializer(write_min_free)
    ] = MinFree(percent=5.0)
    memory_bytes: _Size = Field(256 * 2**20, alias="memory")


class StateSettings(_Section):
    """`[state]`: what cannot be fetched again."""

    dir: _FilePath


class LimitsSettings(_Section):
    """`[limits]`: ceilings on what an upstream may send, and on what clients may ask for."""

    index_bytes: _PositiveSize = Field(64 * 2**20, alias="index")
    crate_bytes: _PositiveSize = Field(2**30, alias="crate")
    connections: _Count | None = Field(
        None, description="half of the files that may be open, 16384 at most"
    )
    client_requests: _Count | None = Field(None, description="no limit")
    client_misses: _Rate | None = Field(None, description="no limit")
    registry_requests: _Count | None = Field(None, description="no limit")
    registry_misses: _Rate | None = Field(None, description="no limit")


class LogSettings(_Section):
    """`[log]`: how we speak."""

    format: Literal["console", "json"] | None = Field(
        None, description="console if standard error is a terminal, json otherwise"
    )
    level: Literal["debug", "info", "warning", "error"] = "info"


class UpstreamSettings(_Section):
    """`[upstreams.NAME]`: one source of crates and the terms with it."""

    index: Annotated[str, PlainValidator(parse_index)]
    token: Annotated[Secret, PlainValidator(_token), PlainSerializer(write_secret)] | None = Field(
        None, description="requests go without"
    )
    publish_token: Annotated[None, PlainValidator(_absent("publish_token is"))] = Field(
        None, exclude=True
    )
    owns: Annotated[tuple[str, ...], PlainValidator(_absent("owns is"))] = Field((), exclude=True)
    fresh_for_s: _Duration = Field(10.0, alias="fresh_for")
    stale_while_revalidate_s: _Duration = Field(0.0, alias="stale_while_revalidate")
    stale_if_error_s: _Duration = Field(7 * 86400.0, alias="stale_if_error")
    offline: bool = False
    mirrors: Annotated[
        tuple[Annotated[str, PlainValidator(parse_index)], ...], _List, AfterValidator(_distinct)
    ] = ()
    allow_hosts: Annotated[
        tuple[Annotated[str, PlainValidator(parse_reachable_host)], ...], _List
    ] = ()
    absent_statuses: _Statuses = frozenset({404, 410, 451})
    proxy: Annotated[str, PlainValidator(parse_forward_proxy)] | None = Field(
        None, description="HTTPS_PROXY and NO_PROXY decide"
    )
    ca_file: _FilePath | None = Field(None, description="the system's trust store alone")
    client_cert: _FilePath | None = Field(None, description="none is shown")
    client_key: _FilePath | None = Field(None, description="none is used")
    connections: Annotated[int, PlainValidator(_connections)] = 64
    api_interval_s: _Duration = Field(0.0, alias="api_interval")
    connect_timeout_s: _PositiveDuration = Field(5.0, alias="connect_timeout")
    idle_timeout_s: _PositiveDuration = Field(20.0, alias="idle_timeout")

    @property
    def index_url(self) -> str:
        """The address that requests go to: `index` without `sparse+`, with the slash."""
        return self.index.removeprefix(SPARSE)

    @property
    def mirror_urls(self) -> tuple[str, ...]:
        """The addresses of the mirrors' indexes, in their order."""
        return tuple(mirror.removeprefix(SPARSE) for mirror in self.mirrors)


class RegistrySettings(_Section):
    """`[registries.NAME]`: one namespace that we serve; unwritten, `access` is None and open."""

    upstreams: Annotated[tuple[str, ...], _List, AfterValidator(_one_upstream)]
    access: Annotated[Literal["open"], PlainValidator(_access)] | None = Field(
        None, description="open, as no member has a token or only this machine can ask"
    )

    @property
    def upstream(self) -> str:
        """The one upstream that answers here."""
        return self.upstreams[0]


class Settings(BaseModel):
    """The whole configuration, complete and consistent. Only `load` makes it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    server: ServerSettings
    cache: CacheSettings
    state: StateSettings
    limits: LimitsSettings
    log: LogSettings
    upstreams: Annotated[
        Mapping[str, UpstreamSettings], AfterValidator(MappingProxyType), PlainSerializer(dict)
    ]
    registries: Annotated[
        Mapping[str, RegistrySettings], AfterValidator(MappingProxyType), PlainSerializer(dict)
    ]


PLAIN_SECTIONS: Final[Mapping[str, type[BaseModel]]] = MappingProxyType(
    {
        "server": ServerSettings,
        "cache": CacheSettings,
        "state": StateSettings,
        "limits": LimitsSettings,
        "log": LogSettings,
    }
)
NAMED_SECTIONS: Final[Mapping[str, type[BaseModel]]] = MappingProxyType(
    {"upstreams": UpstreamSettings, "registries": RegistrySettings}
)
_TABLES: Final[Mapping[str, Mapping[str, Kind]]] = MappingProxyType(
    {
        "tls": {"certificate": Kind.PATH, "key": Kind.PATH},
        "token": {"env": Kind.TEXT, "file": Kind.PATH},
        "publish_token": {"env": Kind.TEXT, "file": Kind.PATH},
    }
)


def key_shapes() -> Shapes:
    """Return every key there is, as the sources must know it."""
    return Shapes(
        plain={section: _keys_of(model) for section, model in PLAIN_SECTIONS.items()},
        named={section: _keys_of(model) for section, model in NAMED_SECTIONS.items()},
    )


def _keys_of(model: type[BaseModel]) -> dict[str, Kind]:
    keys: dict[str, Kind] = {}
    for attribute, info in model.model_fields.items():
        key = info.alias or attribute
        if key in _TABLES:
            keys |= {f"{key}.{inner}": kind for inner, kind in _TABLES[key].items()}
        else:
            keys[key] = _kind_of(info.annotation)
    return keys


def _kind_of(annotation: object) -> Kind:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kind_of(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return _kind_of(get_args(annotation)[0])
    return _KINDS.get(origin or annotation, Kind.TEXT)
