"""Where the configuration's values come from: a TOML file, `HOLDFAST__*` variables, options.

Out of the three grows one tree of raw values, the later ones on top, and a record of the origin of
each, so that a complaint can name what the user wrote: `upstreams.company.fresh_for`, or
`HOLDFAST__UPSTREAMS__COMPANY__FRESH_FOR`, or `--listen`.

A variable spells its key in capitals, `__` between the segments. In the name of an upstream or a
registry, which has no underscore, `_` stands for `-`. A list is written as JSON and replaces the
file's; of a secret the two forms replace each other. A variable that is no key is a problem: it is
a typing error, and what it was meant to change is left as it was.

A path in the file is relative to the file, any other to the working directory.

What is not here: what the keys are (`config` says so, as `Shapes`) and what the values mean.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from proxy.config_values import (
    ValueRefused,
    parse_text,
)

PREFIX: Final = "HOLDFAST__"
Location = tuple[str | int, ...]
Problem = tuple[str, str]
Table = dict[str, object]

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_NAME: Final = re.compile(r"[A-Z0-9][A-Z0-9_]*", re.ASCII)
_DIGITS: Final = re.compile(r"-?\d{1,19}", re.ASCII)


class Kind(Enum):
    """How a value looks, as far as reading it from a variable and placing a path go."""

    TEXT = "text"
    PATH = "path"
    FLAG = "flag"
    NUMBER = "number"
    LIST = "list"


@dataclass(frozen=True, slots=True)
class Shapes:
    """The keys there are: by section, in plain ones and in those of one table per name.

    A key that is itself a table has its own keys spelt after a dot: `token.env`.
    """

    plain: Mapping[str, Mapping[str, Kind]]
    named: Mapping[str, Mapping[str, Kind]]


@dataclass(frozen=True, slots=True)
class Sources:
    """The tree of raw values, and for each that is not from the file, what it was written as."""

    tree: Table = field(default_factory=dict)
    origins: dict[Location, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def key(self, location: Location) -> str:
        """Say `location` as the user wrote it."""
        for stop in range(len(location), 1, -1):
            origin = self.origins.get(location[:stop])
            if origin is not None:
                return origin + dotted(location[stop:])
        below = self.origins_below(location) if len(location) > 1 else []
        return below[0] if below else dotted(location)

    def origins_below(self, location: Location) -> list[str]:
        """Return the variables and options that set something below `location`."""
        return [name for at, name in self.origins.items() if at[: len(location)] == location]

    def put(self, location: Sequence[str], value: object, origin: str) -> None:
        """Set a value, over the file's.

        Where the file has something else than a table, that stays: it is a problem of its own.
        """
        table = self.tree
        for segment in location[:-1]:
            inner = table.setdefault(segment, {})
            if not isinstance(inner, dict):
                return
            table = inner
        table[location[-1]] = value
        self.origins[tuple(location)] = origin


def dotted(location: Location) -> str:
    """Write a location as TOML does: `a.b`, `a."b c"`, `a.b[0]`."""
    text = ""
    for segment in location:
        if isinstance(segment, int):
            text += f"[{segment}]"
        else:
            bare = _BARE_KEY.fullmatch(segment) is not None
            text += "." if text else ""
            text += segment if bare else json.dumps(segment)
    return text


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean ...?` or the known words, to follow the statement of an error."""
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(words)}"


def read_file(path: Path, shapes: Shapes, sources: Sources) -> None:
    """Read a TOML file into `sources`, the paths in it made relative to its folder."""
    name = _printable(str(path))
    try:
        with path.open("rb") as file:
            sources.tree.update(tomllib.load(file))
    except OSError as error:
        sources.problems.append((name, f"the file cannot be read: {error.strerror}"))
    except RecursionError:
        sources.problems.append((name, "this is not TOML: nested too deeply"))
    except UnicodeDecodeError as error:
        sources.problems.append((name, f"this is not TOML: not UTF-8 at byte {error.start}"))
    except ValueError as error:
        sources.problems.append((name, f"this is not TOML: {error}"))
    else:
        _anchor(sources.tree, shapes, path.parent)


def _anchor(tree: Table, shapes: Shapes, folder: Path) -> None:
    for section, keys in (*shapes.plain.items(), *shapes.named.items()):
        table = tree.get(section)
        if not isinstance(table, dict):
            continue
        tables = [table] if section in shapes.plain else [*table.values()]
        paths = [key.split(".") for key, kind in keys.items() if kind is Kind.PATH]
        for at in tables:
            for segments in paths:
                _anchor_one(at, segments, folder)


def _anchor_one(table: object, segments: Sequence[str], folder: Path) -> None:
    for segment in segments[:-1]:
        table = table.get(segment) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        return
    value = table.get(segments[-1])
    if isinstance(value, str) and value and not value.startswith("~"):
        table[segments[-1]] = str(folder / value)


def read_environment(environ: Mapping[str, str], shapes: Shapes, sources: Sources) -> None:
    """Put the values of the `HOLDFAST__*` variables over those in `sources`."""
    spelt = sorted(name for name in environ if name.startswith(PREFIX))
    replaced: set[tuple[str, ...]] = set()
    for variable in spelt:
        found = _key_of(variable, shapes)
        if isinstance(found, str):
            sources.problems.append((_printable(variable), found))
            continue
        location, kind = found
        try:
            value = _value(environ[variable], kind)
        except ValueRefused as refused:
            sources.problems.append((variable, str(refused)))
            continue
        within = _table_within(location, shapes)
        if within is not None and within not in replaced:
            # The file's form of a secret would otherwise stand beside the variable's.
            replaced.add(within)
            sources.put(within, {}, variable)
            sources.origins.pop(within, None)
        sources.put(location, value, variable)


def _key_of(variable: str, shapes: Shapes) -> tuple[list[str], Kind] | str:
    """Return the location of a variable's key and its kind, or what is wrong with it."""
    section, *segments = variable.removeprefix(PREFIX).split("__")
    keys = shapes.plain.get(section.lower())
    name: list[str] = []
    if keys is None:
        keys = shapes.named.get(section.lower())
        if keys is None:
            return f"there is no such section{suggestion(section, _capitals(shapes))}"
        if len(segments) < 2 or _NAME.fullmatch(segments[0].upper()) is None:  # noqa: PLR2004
            return f"expected {PREFIX}{section.upper()}__NAME__KEY, '-' in NAME written as '_'"
        name = [segments.pop(0).lower().replace("_", "-")]
    key = ".".join(segments).lower()
    kind = keys.get(key)
    if kind is None:
        if any(one.startswith(f"{key}.") for one in keys):
            kinds = [
                f"{variable}__{one.removeprefix(f'{key}.').upper()}"
                for one in keys
                if one.startswith(f"{key}.")
            ]
            return f"this is set by {' or '.join(kinds)}"
        known = [one.replace(".", "__").upper() for one in keys]
        return f"there is no such key{suggestion(key.replace('.', '__').upper(), known)}"
    if variable != variable.upper():
        return f"variables are spelt in capitals: {variable.upper()}"
    return [section.lower(), *name, *key.split(".")], kind


def _capitals(shapes: Shapes) -> Iterator[str]:
    yield from (section.upper() for section in (*shapes.plain, *shapes.named))


def _table_within(location: Sequence[str], shapes: Shapes) -> tuple[str, ...] | None:
    depth = 2 if location[0] in shapes.plain else 3
    return tuple(location[:-1]) if len(location) > depth else None


def _value(text: str, kind: Kind) -> object:
    """Turn a variable's text into what TOML would have held."""
    parse_text(text)
    match kind:
        case Kind.FLAG if text in ("true", "false"):
            return text == "true"
        case Kind.NUMBER if _DIGITS.fullmatch(text) is not None:
            return int(text)
        case Kind.LIST if text.lstrip().startswith("["):
            try:
                return json.loads(text)
            except (ValueError, RecursionError):
                raise ValueRefused('expected a JSON list, such as ["one", "two"]') from None
        case _:
            return text


def _printable(text: str) -> str:
    """Return a name that the system gave us as a terminal and a log can take it."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()
