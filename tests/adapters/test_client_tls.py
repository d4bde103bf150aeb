"""Until when a certificate is good, as its file says. The rest is tried in `tests/cargo`."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from proxy.adapters.client_tls import CertificateRefused, client_context, expiry


@pytest.mark.parametrize("year", [2049, 2050, 2199])
def test_the_end_of_a_certificate_is_read_in_both_of_the_ways_that_years_are_written(
    tmp_path: Path, year: int
) -> None:
    end = datetime(year, 12, 31, 23, 59, 58, tzinfo=UTC)
    leaf = trustme.CA().issue_cert("holdfast.example", not_after=end)
    path = tmp_path / "cert.pem"
    leaf.private_key_and_cert_chain_pem.write_to_path(str(path))
    assert expiry(path) == end


@pytest.mark.parametrize(
    "content",
    [
        "",
        "nonsense",
        "-----BEGIN CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nMIL/////\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
    ],
)
def test_what_cannot_be_read_has_no_end(tmp_path: Path, content: str) -> None:
    path = tmp_path / "cert.pem"
    path.write_text(content)
    assert expiry(path) is None
    assert expiry(tmp_path / "nothing") is None


def test_a_key_in_the_certificates_own_file_is_told_under_the_certificates_key(
    tmp_path: Path,
) -> None:
    path = tmp_path / "cert.pem"
    trustme.CA().issue_cert("holdfast.example").cert_chain_pems[0].write_to_path(str(path))
    with pytest.raises(CertificateRefused, match="no private key") as caught:
        client_context(None, path, None)
    assert caught.value.key == "client_cert"
