"""TLS towards clients: a certificate of the operator's, HTTP/2 by ALPN, both renewable in place.

TLS 1.2 and later. `h2` before `http/1.1`, as cargo prefers. A renewed certificate is read into the
same context, so that new handshakes get it and open connections go on.
"""

import ssl
from pathlib import Path


class CertificateRefused(OSError):
    """A certificate or key cannot be used; the message names the configuration's key.

    `reason` is the message without it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"server.tls: {reason}")
        self.reason = reason


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Make the context for a listener. Raises CertificateRefused."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2", "http/1.1"])
    load(context, certificate, key)
    return context


def load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Read certificate and key into a context, for the handshakes to come.

    Raises CertificateRefused, and then leaves the context as it was: the pair is tried on another
    context first.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, _no_passphrase)
        context.load_cert_chain(certificate, key, _no_passphrase)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error.strerror or str(error)
        raise CertificateRefused(f"certificate {certificate} with key {key}: {reason}") from None


def _no_passphrase() -> str:
    """Refuse an encrypted key: OpenSSL would ask at the terminal, and all would wait for it."""
    raise OSError("the key is encrypted, and there is nobody to type its passphrase")
