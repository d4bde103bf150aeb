"""A real squid on the loopback: a forward proxy as a company has one.

It knows names that nobody else does (`NAMES`, which lead to 127.0.0.1) and asks no name server, so
whoever reaches an upstream by such a name has gone through it. It wants a user name and a password
(`USER`, `SECRET`) if it is told to, and refuses everything if it is told that.

A squid that is started by root gives its privileges up and then reads nothing below a test's own
directory, so what it reads lies in one that is open to all.
"""

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Final

from tests.world.programs import program, running

NAMES: Final = ("packages.invalid", "files.invalid")
USER, SECRET = "holdfast", "p@ss/word"
IN_A_URL: Final = "holdfast:p%40ss%2Fword"

_HELPER: Final = f"""\
while read -r given; do
    test "$given" = '{USER} {SECRET}' && echo OK || echo ERR
done
"""


class Access(Enum):
    """Whom a squid lets through."""

    ALL = "http_access allow all"
    NOBODY = "http_access deny all"
    KNOWN = "acl known proxy_auth REQUIRED\nhttp_access allow known"


@contextmanager
def squid(port: int, access: Access = Access.ALL, *, caching: bool = False) -> Iterator[None]:
    """Run squid on a port of 127.0.0.1; what it may cache, it keeps in memory if at all."""
    with tempfile.TemporaryDirectory(prefix="holdfast-squid-") as directory:
        root = Path(directory)
        root.chmod(0o755)
        (root / "helper").write_text(_HELPER)
        (root / "hosts").write_text("".join(f"127.0.0.1 {name}\n" for name in NAMES))
        (root / "mime.conf").touch()
        (root / "squid.conf").write_text(
            f"""
            http_port 127.0.0.1:{port}
            visible_hostname proxy.invalid
            hosts_file {root}/hosts
            dns_nameservers 127.0.0.1
            mime_table {root}/mime.conf
            error_directory {root}
            icon_directory {root}
            access_log none
            cache_log /dev/null
            cache_store_log none
            cache {"allow" if caching else "deny"} all
            cache_mem 8 MB
            coredump_dir none
            pid_filename none
            pinger_enable off
            unlinkd_program /bin/true
            auth_param basic program /bin/sh {root}/helper
            auth_param basic children 1 startup=1
            {access.value}
            """
        )
        arguments = ["-N", "-f", str(root / "squid.conf")]
        # It has nothing to lose, and takes two seconds for an orderly end.
        with running(
            program("squid"), arguments, port=port, log=root / "squid.log", stop=signal.SIGKILL
        ):
            yield
