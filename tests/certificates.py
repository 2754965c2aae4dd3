"""An authority of a test's own, and certificates that it has signed, as files."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

PASSWORD = b"a password"


def certificates(folder: Path) -> dict[str, Path]:
    """ca; server, server_key; client, client_key (encrypted, see password)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    folder.mkdir(exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])

    def signed(name: x509.Name, key: ec.EllipticCurvePrivateKey, authority: bool) -> bytes:
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
            .sign(ca_key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM)

    def written(name: str, data: bytes) -> Path:
        path = folder / f"{name}.pem"
        path.write_bytes(data)
        return path

    found = {"ca": written("ca", signed(ca_name, ca_key, True))}
    for who in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, who)])
        found[who] = written(who, signed(name, key, False))
        lock: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if who == "client":
            lock = serialization.BestAvailableEncryption(PASSWORD)
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)
        found[f"{who}_key"] = written(f"{who}_key", pem)
    found["password"] = written("password", PASSWORD)
    return found
