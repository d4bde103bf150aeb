"""The command `holdfast`: arguments to settings, settings to a run, what happened to an exit code.

0 done; 1 done, and something was found wrong; 2 usage or configuration; 3 could not (upstream,
disk, another serve), unexpected errors included; 130 interrupted. What a command reports goes to
standard output, what it says on the way to standard error.

`verify`, `gc`, `purge` and `stats` ask a running `serve` through its control socket; with none
running they hold the cache themselves for as long as they take. They make no cache, and touch none
of another user: `serve` could not use what they would leave there. Only `serve`, `config check` and
`verify` need the secrets; the others run where these are not.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, NoReturn, TypeVar

import typer

from proxy import version
from proxy.config import ConfigError, Overrides, Settings, load
from proxy.core.failures import StoreFailure
from proxy.hang_up import hang_ups

T = TypeVar("T")
Result = dict[str, object]

DONE: Final = 0
FOUND_WRONG: Final = 1
USAGE: Final = 2
COULD_NOT: Final = 3
INTERRUPTED: Final = 130

app = typer.Typer(
    name="holdfast",
    help="A caching pull-through proxy and mirror for Cargo registries.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Look at the configuration.", no_args_is_help=True)
app.add_typer(config_app, name="config")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", envvar="HOLDFAST_CONFIG", help="The TOML file to read."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Report as JSON.")]


def main() -> NoReturn:
    """Run the command and exit."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(DONE)


class _Stop(Exception):
    """End the command with a code, after a line on standard error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Turn whatever goes wrong into a line on standard error and an exit code."""
    try:
        yield
    except _Stop as stop:
        _complain(str(stop))
        raise typer.Exit(stop.code) from None
    except ConfigError as error:
        for key, message in error.problems:
            _complain(f"{key}: {message}")
        raise typer.Exit(USAGE) from None
    except (StoreFailure, OSError) as error:
        _complain(str(error))
        raise typer.Exit(COULD_NOT) from None
    except (typer.Exit, KeyboardInterrupt):
        raise
    except Exception as error:  # noqa: BLE001
        # The boundary: what nobody foresaw is code 3 too, with everything that helps to report it.
        import traceback

        traceback.print_exc()
        _complain(f"unexpected: {error!r}; this is a bug in holdfast")
        raise typer.Exit(COULD_NOT) from None


def _complain(message: str) -> None:
    typer.echo(f"holdfast: {message}", err=True)


def _settings(
    config: Path | None, overrides: Overrides | None = None, *, secrets: bool = True
) -> Settings:
    return load(
        config,
        os.environ,  # noqa: TID251 - here the environment comes in
        overrides or Overrides(),
        secrets=secrets,
    )


def _run(work: Callable[[], Coroutine[object, object, T]]) -> T:
    """Run on uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work())
    return uvloop.run(work())


@app.callback(invoke_without_command=True)
def root(
    *,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.")
    ] = False,
) -> None:
    """A caching pull-through proxy and mirror for Cargo registries."""
    if show_version:
        typer.echo(f"holdfast {version.VERSION}")
        raise typer.Exit


@app.command()
def serve(
    *,
    config: ConfigOption = None,
    listen: Annotated[
        list[str] | None,
        typer.Option("--listen", metavar="HOST:PORT", help="Where to listen; may be repeated."),
    ] = None,
    cache_dir: Annotated[
        str | None, typer.Option("--cache-dir", metavar="DIR", help="Where the cache is.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no upstream; serve what is held.")
    ] = False,
) -> None:
    """Serve until SIGTERM, which drains."""
    with _exit_codes(), hang_ups() as hung_up:
        overrides = Overrides(listen=tuple(listen or ()), cache_dir=cache_dir, offline=offline)

        def read() -> Settings:
            return _settings(config, overrides)

        settings = read()
        from proxy import serve as serving
        from proxy.adapters import logs
        from proxy.adapters.cache_dir import CacheInUse, CacheTooNew

        try:
            with logs.configured_apart(settings.log.format, settings.log.level):
                _run(
                    lambda: serving.serve(
                        settings, lambda urls: _announce(settings, urls), read, hung_up
                    )
                )
        except (CacheInUse, CacheTooNew) as error:
            raise _Stop(COULD_NOT, str(error)) from None


def _announce(settings: Settings, urls: list[str]) -> None:
    from proxy.config_show import cargo_config

    base = None if settings.server.public_urls else _local(urls[0])
    for url in urls:
        typer.echo(f"holdfast {version.VERSION} is serving on {url}")
    if sys.stdout.isatty():
        # For a person to paste. A journal has the output beside the log, whose lines are JSON.
        typer.echo()
        typer.echo(cargo_config(settings, base, None))
    sys.stdout.flush()


def _local(url: str) -> str:
    """Return an address that works from this machine for one that we listen on."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:").rstrip("/")


@config_app.command("check")
def config_check(*, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Validate the configuration and the files it names; every error names its key."""
    with _exit_codes():
        from proxy import cli_check
        from proxy.adapters.clock import SystemClock

        try:
            cli_check.check(_settings(config), SystemClock().now())
        except ConfigError as error:
            if not as_json:
                raise
            problems = [{"key": key, "message": message} for key, message in error.problems]
            typer.echo(json.dumps({"ok": False, "problems": problems}))
            raise typer.Exit(USAGE) from None
        typer.echo(
            json.dumps({"ok": True, "problems": []}) if as_json else "the configuration is good"
        )


@config_app.command("show")
def config_show(*, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print the effective configuration, secrets redacted."""
    with _exit_codes():
        from proxy.config_show import redacted, redacted_toml

        settings = _settings(config, secrets=False)
        typer.echo(json.dumps(redacted(settings)) if as_json else redacted_toml(settings))


@config_app.command("cargo")
def config_cargo(
    *,
    config: ConfigOption = None,
    url: Annotated[
        str | None, typer.Option("--url", help="The address at which cargo reaches the proxy.")
    ] = None,
    registry: Annotated[
        str | None, typer.Option("--registry", help="Only what this registry needs.")
    ] = None,
) -> None:
    """Print the $CARGO_HOME/config.toml that a client needs."""
    with _exit_codes():
        from proxy.config_show import cargo_config

        typer.echo(cargo_config(_settings(config, secrets=False), url, registry))


@app.command()
def verify(*, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Hash all that is stored; set aside what is bad, and fetch it anew."""
    with _exit_codes():
        result = _operate(_settings(config), "verify", {})
        faults = result.get("faults")
        assert isinstance(faults, list), "verify reports its faults"
        if as_json:
            typer.echo(json.dumps(result))
        else:
            for fault in faults:
                typer.echo(f"{fault['subject']}: {fault['fault']}; {fault['outcome']}")
            typer.echo(
                f"{result['blobs_checked']} crates and {result['index_files_checked']} index files "
                f"checked, {len(faults)} faults"
            )
        raise typer.Exit(FOUND_WRONG if faults else DONE)


@app.command()
def gc(*, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Make room down to the limits."""
    with _exit_codes():
        result = _operate(_settings(config, secrets=False), "gc", {})
        typer.echo(json.dumps(result) if as_json else f"freed {result['freed_bytes']} bytes")


@app.command()
def purge(
    crates: Annotated[
        list[str] | None, typer.Argument(metavar="NAME[@VERSION]...", help="What to forget.")
    ] = None,
    *,
    registry: Annotated[str, typer.Option("--registry", help="Whose crates.")],
    everything: Annotated[bool, typer.Option("--all", help="All of the registry.")] = False,
    soft: Annotated[
        bool, typer.Option("--soft", help="Forget nothing; ask again before the next use.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forget crates of a registry."""
    with _exit_codes():
        if everything == bool(crates):
            raise _Stop(USAGE, "purge takes either names of crates or --all")
        arguments: Result = {
            "registry": registry,
            "crates": list(crates or ()),
            "all": everything,
            "soft": soft,
        }
        result = _operate(_settings(config, secrets=False), "purge", arguments)
        if as_json:
            typer.echo(json.dumps(result))
            return
        what = "to be asked for again" if soft else "forgotten"
        typer.echo(
            f"{result['index_files']} index files and {result['blobs']} crates {what}, "
            f"{result['freed_bytes']} bytes freed"
        )
        unknown = result["unknown"]
        assert isinstance(unknown, list), "purge reports what it did not find"
        for one in unknown:
            _complain(f"{one} is not held")


@app.command()
def stats(*, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Say what is stored and how it was used."""
    with _exit_codes():
        result = _operate(_settings(config, secrets=False), "stats", {})
        if as_json:
            typer.echo(json.dumps(result))
            return
        from proxy.cli_reports import stats_lines

        for line in stats_lines(result):
            typer.echo(line)


def _operate(settings: Settings, operation: str, arguments: Result) -> Result:
    """Have an operation done by the serve that runs, or here."""
    from proxy.adapters import logs
    from proxy.adapters.cache_dir import CacheInUse, CacheTooNew
    from proxy.adapters.control_client import Refused
    from proxy.cli_reports import Meter
    from proxy.service.housekeeping import NoSuchRegistry

    logs.configure("console", "warning")
    with Meter() as meter:
        try:
            return _run(lambda: _asked_or_done(settings, operation, arguments, meter.show))
        except (Refused, NoSuchRegistry) as error:
            raise _Stop(USAGE, str(error)) from None
        except (CacheInUse, CacheTooNew) as error:
            raise _Stop(COULD_NOT, str(error)) from None


async def _asked_or_done(
    settings: Settings,
    operation: str,
    arguments: Result,
    show: Callable[[str, int, int | None], None],
) -> Result:
    from proxy import compose
    from proxy.adapters.control_client import NobodyServes, ask
    from proxy.service.housekeeping import Progress
    from proxy.web.control import SOCKET_NAME

    def show_asked(progress: Result) -> None:
        total = progress.get("total")
        show(
            str(progress.get("doing")),
            int(str(progress.get("done"))),
            total if isinstance(total, int) else None,
        )

    def show_done(progress: Progress) -> None:
        show(progress.doing, progress.done, progress.total)

    try:
        return await ask(settings.cache.dir / SOCKET_NAME, operation, arguments, show_asked)
    except NobodyServes:
        _expect_own_cache(settings.cache.dir)
        async with compose.house(settings, serving=False) as rooms:
            return await rooms.operations.perform(operation, arguments, show_done)


def _expect_own_cache(directory: Path) -> None:
    """Raise _Stop unless the cache is there and is this user's."""
    from proxy.adapters.cache_dir import owner_of

    owner, user = owner_of(directory), os.geteuid()
    if owner is None:
        message = (
            f"there is no cache at {directory}, and nothing serves from there:"
            " is this the right configuration? (--config FILE, or HOLDFAST_CONFIG)"
        )
        raise _Stop(COULD_NOT, message)
    if owner != user:
        message = (
            f"the cache directory {directory} belongs to {_account(owner)}, and nothing serves from"
            f" there: run this as {_account(owner)}, not as {_account(user)}, whose files would"
            " keep serve from starting"
        )
        raise _Stop(COULD_NOT, message)


def _account(user: int) -> str:
    """Return the name of a user, or the number of one without a name."""
    import pwd

    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
