"""A real nginx on the loopback, with as little around the configuration at hand as it will take."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.world.programs import program, running


@contextmanager
def nginx(root: Path, configuration: str, *, port: int) -> Iterator[None]:
    """Run nginx with what may stand in `http { ... }`, which must listen on `port`."""
    root.mkdir(parents=True, exist_ok=True)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "\n".join(f"{kind}_temp_path {root}/{kind};" for kind in kinds)
    file = root / "nginx.conf"
    file.write_text(
        f"daemon off; master_process off; pid {root}/nginx.pid; error_log {root}/nginx.log;\n"
        "events { worker_connections 256; }\n"
        f"http {{\naccess_log {root}/access.log;\n{places}\n{configuration}\n}}\n"
    )
    arguments = ["-p", str(root), "-c", str(file), "-e", str(root / "nginx.log")]
    with running(program("nginx"), arguments, port=port, log=root / "nginx.log"):
        yield
