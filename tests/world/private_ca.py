"""A company's own certificate authority: what it issues, and in which states that can be met with.

Everything is written as files, since files are what configurations name. Server certificates are
for this machine by all its names; `tls` is a server that wants a certificate of its clients too.
"""

import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

HOSTS: Final = ("127.0.0.1", "::1", "localhost", "packages.invalid", "files.invalid")


@dataclass(frozen=True, slots=True)
class Identity:
    """A client's certificate and its key, as files."""

    certificate: Path
    key: Path

    @property
    def keys(self) -> dict[str, str]:
        """Return the two keys of an upstream's configuration."""
        return {"client_cert": str(self.certificate), "client_key": str(self.key)}


@dataclass(frozen=True, slots=True)
class PrivateCA:
    """An authority whose files lie in `root`."""

    root: Path
    issuer: trustme.CA = field(default_factory=trustme.CA)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.issuer.cert_pem.write_to_path(str(self.ca_file))

    @property
    def ca_file(self) -> Path:
        """The authority's own certificate."""
        return self.root / "ca.pem"

    def tls(self, *, wants_certificate: bool = False) -> ssl.SSLContext:
        """Return the TLS of a server of the company."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.issuer.issue_cert(*HOSTS).configure_cert(context)
        if wants_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            self.issuer.configure_trust(context)
        return context

    def server(self, name: str = "server") -> Identity:
        """Write the certificate of a server of the company, and its key."""
        return self._written(name, self.issuer.issue_cert(*HOSTS))

    def client(self, name: str = "client", *, expired_days: int = 0) -> Identity:
        """Write a client's certificate, if need be one that ended some days ago."""
        until = None
        if expired_days:
            until = datetime.now(UTC) - timedelta(days=expired_days)
        leaf = self.issuer.issue_cert("holdfast.example", not_after=until)
        return self._written(name, leaf)

    def locked(self, identity: Identity) -> Identity:
        """Put a client's key under a passphrase, in a file beside it."""
        key = load_pem_private_key(identity.key.read_bytes(), None)
        locked = identity.key.with_suffix(".locked")
        locked.write_bytes(
            key.private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"nobody knows")
            )
        )
        return Identity(identity.certificate, locked)

    def _written(self, name: str, leaf: trustme.LeafCert) -> Identity:
        identity = Identity(self.root / f"{name}.pem", self.root / f"{name}.key")
        identity.certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(str(identity.key))
        return identity
