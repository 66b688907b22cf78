"""The webhook's certificate: made, kept as a Secret's entries, and made anew in time, without anybody's help.

A private authority signs it, because whoever calls the webhook trusts an authority and not a certificate: that one stays
for years.  When it nears its end its successor is trusted beside it, so that replicas may change over one after another.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFE = timedelta(days=90)
RENEWED = timedelta(days=30)  # before its end
AUTHORITY_LIFE = timedelta(days=3650)
AUTHORITY_RENEWED = timedelta(days=365)
SKEW = timedelta(hours=1)  # that another clock may be behind

ENTRIES = ("ca.crt", "ca.key", "tls.crt", "tls.key")


@dataclass(frozen=True)
class Certificate:
    """All in PEM.  `authorities` is the bundle to trust, the one that signs first."""

    authorities: bytes
    authority_key: bytes
    certificate: bytes
    key: bytes

    def entries(self) -> dict[str, bytes]:
        """What a Secret keeps of it."""
        return dict(zip(ENTRIES, (self.authorities, self.authority_key, self.certificate, self.key), strict=True))


def read(entries: Mapping[str, bytes]) -> Certificate | None:
    """The certificate that a Secret keeps; None where there is none, or one that nobody could use."""
    found = Certificate(*(entries.get(name, b"") for name in ENTRIES))
    try:
        _Opened(found)
    except ValueError:
        return None
    return found


def renewed(found: Certificate | None, hosts: Sequence[str], now: float) -> Certificate:
    """The certificate to use from now on for these names and addresses: `found` itself as long as it is good."""
    at = datetime.fromtimestamp(now, UTC)
    opened = None if found is None else _Opened(found)
    if found is None or opened is None or opened.authority.not_valid_after_utc - AUTHORITY_RENEWED < at:
        key = ec.generate_private_key(ec.SECP256R1())
        authority = _authority(key, at)
        older = [one for one in (opened.authorities if opened else []) if one.not_valid_after_utc > at]
        return _issued(authority, key, older, hosts, at)
    good = opened.certificate.not_valid_before_utc <= at < opened.certificate.not_valid_after_utc - RENEWED
    if good and opened.hosts == set(hosts):
        return found
    older = [one for one in opened.authorities[1:] if one.not_valid_after_utc > at]
    return _issued(opened.authority, opened.authority_key, older, hosts, at)


class _Opened:
    """A certificate's parts; ValueError where one of them is none, or where they do not belong together."""

    def __init__(self, found: Certificate) -> None:
        self.authorities = x509.load_pem_x509_certificates(found.authorities)
        self.authority = self.authorities[0]
        self.certificate = x509.load_pem_x509_certificate(found.certificate)
        try:
            self.authority_key = _key(found.authority_key, self.authority)
            _key(found.key, self.certificate)
            self.certificate.verify_directly_issued_by(self.authority)
            names = self.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (TypeError, UnsupportedAlgorithm, InvalidSignature, x509.ExtensionNotFound) as error:
            raise ValueError(str(error)) from error
        self.hosts = {str(one.value) for one in names}


def _key(pem: bytes, certificate: x509.Certificate) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError("a key is not its certificate's")
    return key


def _authority(key: ec.EllipticCurvePrivateKey, at: datetime) -> x509.Certificate:
    # a name of its own: two authorities of one name could not be told apart
    name = _name(f"serveplane webhook authority {at:%Y-%m-%d %H:%M:%S}")
    usage = _usage(key_cert_sign=True, crl_sign=True)
    return (
        _builder(name, name, key, at, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _issued(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    older: Sequence[x509.Certificate],
    hosts: Sequence[str],
    at: datetime,
) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(_name(hosts[0]), authority.subject, key, at, LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return Certificate(b"".join(map(_pem, (authority, *older))), _pem_key(authority_key), _pem(certificate), _pem_key(key))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, at: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - SKEW)
        .not_valid_after(at + life)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())
