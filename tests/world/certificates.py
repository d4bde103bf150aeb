"""Certificates for loopback, and clients that trust them.

An `Authority` is made once for many tests: making keys is what costs time. What it issues is good
for `127.0.0.1` and `localhost`. The system's trust store plays no part.
"""

import ssl
from dataclasses import dataclass, field
from pathlib import Path

import trustme

# What `server.tls` holds: the paths of the certificate chain and of its key.
TlsSection = dict[str, str]


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority that nobody else knows."""

    issuer: trustme.CA = field(default_factory=trustme.CA)

    def issue(self, folder: Path) -> TlsSection:
        """Write a certificate and its key, over what may be there."""
        folder.mkdir(exist_ok=True)
        issued = self.issuer.issue_cert("127.0.0.1", "localhost")
        issued.private_key_pem.write_to_path(folder / "key.pem")
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        (folder / "cert.pem").write_bytes(chain)
        return {"certificate": str(folder / "cert.pem"), "key": str(folder / "key.pem")}

    def trusted(self, *protocols: str) -> ssl.SSLContext:
        """Return the TLS of a client that trusts it and offers `protocols` by ALPN."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.issuer.configure_trust(context)
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context
