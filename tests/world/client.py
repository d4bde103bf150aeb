"""A client that shows what is on the wire, for looking at servers with.

`ask` is an ordinary request on a connection of its own. `raw` is what comes over a bare socket, for
answers that no HTTP client would let through.
"""

import http.client
import socket

from tests.world.server import RegistryServer

PATIENCE_SECONDS = 10


def ask(
    server: RegistryServer, path: str, headers: dict[str, str] | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    """Make one GET request and read the whole answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("GET", path, headers=headers or {})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def raw(server: RegistryServer, path: str) -> bytes:
    """Return everything that the server sends before the connection ends in good order."""
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE_SECONDS) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
        received = b""
        while piece := connection.recv(65536):
            received += piece
        return received
