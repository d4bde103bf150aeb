"""TLS towards an upstream: whom we believe, and the certificate by which we are known.

The files are the operator's, and what is wrong with one is told under its key: `ca_file`,
`client_cert` or `client_key`. A key under a passphrase is refused: there is nobody to type it, and
OpenSSL would wait at the terminal. What only the other side can judge (does it believe our
certificate?) shows in the handshake, and is `upstream_failures`' to tell.

A certificate that has expired is no obstacle here: what is held can still be served, and only the
upstream's clock counts. `expiry` is for those who want to say so beforehand.
"""

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_SEQUENCE_OF_VALIDITY: Final = 3  # behind serial number, algorithm and issuer; RFC 5280, 4.1
_VERSION_TAG: Final = 0xA0
_UTC_TIME_TAG: Final = 0x17
_LONG_FORM: Final = 0x80


class CertificateRefused(OSError):
    """A file cannot be used. `key` is the one it is configured under; the message tells why."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key = key


def client_context(
    ca_file: Path | None, client_cert: Path | None, client_key: Path | None
) -> ssl.SSLContext:
    """Build the client's TLS: the system's trust store, and what the operator adds.

    Without `client_key`, the key is in the certificate's file. Raises CertificateRefused.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file is not None:
        _read(ca_file, "ca_file")
        try:
            context.load_verify_locations(cafile=ca_file)
        except ssl.SSLError:
            raise CertificateRefused("ca_file", f"{ca_file}: no certificates in PEM") from None
    if client_cert is not None:
        _load_identity(context, client_cert, client_key)
    return context


def _load_identity(context: ssl.SSLContext, client_cert: Path, client_key: Path | None) -> None:
    if _BEGIN not in _read(client_cert, "client_cert"):
        raise CertificateRefused("client_cert", f"{client_cert}: no certificate in PEM")
    key, key_file = ("client_cert", client_cert)
    if client_key is not None:
        key, key_file = ("client_key", client_key)
    if "PRIVATE KEY-----" not in _read(key_file, key):
        raise CertificateRefused(key, f"{key_file}: no private key in PEM")
    encrypted = CertificateRefused(
        key, f"{key_file}: the key is encrypted; there is nobody to type its passphrase"
    )

    def passphrase() -> str:
        raise encrypted

    try:
        context.load_cert_chain(client_cert, client_key, password=passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CertificateRefused(
                key, f"{key_file}: not the key of the certificate in {client_cert}"
            ) from None
        reason = error.reason or "damaged"
        raise CertificateRefused(key, f"{key_file}, with {client_cert}: {reason}") from None


def _read(path: Path, key: str) -> str:
    try:
        return path.read_text("latin-1")
    except OSError as error:
        raise CertificateRefused(key, f"{path}: {error.strerror}") from None


def expiry(path: Path) -> datetime | None:
    """Return until when the first certificate of a file is good; None if that cannot be read."""
    try:
        text = path.read_text("latin-1")
        der = ssl.PEM_cert_to_DER_cert(text[text.index(_BEGIN) : text.index(_END) + len(_END)])
        ((_, certificate),) = _elements(der)
        _, to_be_signed = next(_elements(certificate))
        parts = [part for part in _elements(to_be_signed) if part[0] != _VERSION_TAG]
        _, (tag, not_after) = _elements(parts[_SEQUENCE_OF_VALIDITY][1])
        written = not_after.decode("ascii")
        if tag == _UTC_TIME_TAG:
            # RFC 5280, 4.1.2.5.1: two digits of the year, of which 50 is 1950.
            written = ("19" if written >= "50" else "20") + written
        return datetime.strptime(written, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tags and contents of what is written one behind the other in DER (X.690)."""
    at = 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length >= _LONG_FORM:
            size = length - _LONG_FORM
            length, at = int.from_bytes(der[at : at + size], "big"), at + size
        yield tag, der[at : at + length]
        at += length
