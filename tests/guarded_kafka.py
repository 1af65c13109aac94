"""A Kafka that wants TLS and logins: its listeners, users and certificates, and settings to reach it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.kafka import Extras, unused_port

USER = "orders"
PASSWORD = "s3cret-of-the-broker"
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
LISTENERS = {"TLS": "SSL", "MTLS": "SSL", "LOGIN": "SASL_PLAINTEXT", "SAFE": "SASL_SSL"}
_JAAS = {
    "plain": f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";',
    "scram-sha-256": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
    "scram-sha-512": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
}


class GuardedKafka:
    """What a broker has to be started with, and how to reach its listeners: by the names in LISTENERS.

    TLS shows a certificate for 127.0.0.1, MTLS wants to see one as well, LOGIN wants a password, SAFE one over TLS.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = dict(zip(LISTENERS, _distinct_ports(len(LISTENERS)), strict=True))
        self.ca = make_authority(folder, "ca")
        self.other_ca = make_authority(folder, "other-ca")
        self.client = make_certificate(folder, "client", self.ca)
        self.stranger = make_certificate(folder, "stranger", self.other_ca)
        self._server = make_certificate(folder, "server", self.ca, "subjectAltName=IP:127.0.0.1")

    def extras(self) -> Extras:
        """What its node has to be started with."""
        listeners = {name: (protocol, self.ports[name]) for name, protocol in LISTENERS.items()}
        # SCRAM's users are in the storage, which has to be formatted with them.
        scram = [f"{mechanism}=[name={USER},password={PASSWORD}]" for mechanism in MECHANISMS[1:]]
        options = [option for user in scram for option in ("--add-scram", user)]
        return Extras(listeners, self._properties(), options)

    def _properties(self) -> Mapping[str, str]:
        keystore = self.folder / "server-with-key.pem"
        keystore.write_text(self._server.with_suffix(".key").read_text() + self._server.read_text())
        properties = {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(keystore),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.ca),
            "listener.name.mtls.ssl.client.auth": "required",
        }
        for listener in ("login", "safe"):
            properties[f"listener.name.{listener}.sasl.enabled.mechanisms"] = ",".join(MECHANISMS)
            for mechanism, login in _JAAS.items():
                properties[f"listener.name.{listener}.{mechanism}.sasl.jaas.config"] = login
        return properties

    def settings(self, listener: str, mechanism: str = "SCRAM-SHA-512", host: str = "127.0.0.1") -> dict[str, str]:
        """Settings of a worker that connects to this listener in the right way."""
        protocol = LISTENERS[listener]
        found = {"broker": f"kafka://{host}:{self.ports[listener]}", "kafka_security_protocol": protocol}
        if protocol.endswith("SSL"):
            found["kafka_ssl_cafile"] = str(self.ca)
        if listener == "MTLS":
            found |= self.shown(self.client)
        if protocol.startswith("SASL"):
            found["kafka_sasl_mechanism"] = mechanism
            found["kafka_sasl_plain_username"] = USER
            found["kafka_sasl_plain_password"] = PASSWORD
        return found

    def shown(self, certificate: Path) -> dict[str, str]:
        """Settings of a worker that shows this certificate."""
        return {"kafka_ssl_certfile": str(certificate), "kafka_ssl_keyfile": str(certificate.with_suffix(".key"))}


def make_authority(folder: Path, name: str) -> Path:
    """Make an authority that signs certificates; its own certificate, with the key beside it."""
    return _openssl(folder, name)


def make_certificate(folder: Path, name: str, authority: Path, *extensions: str) -> Path:
    """Make a certificate that `authority` has signed; the key is beside it."""
    signed = ["-CA", str(authority), "-CAkey", str(authority.with_suffix(".key"))]
    added = [part for extension in ("basicConstraints=CA:FALSE", *extensions) for part in ("-addext", extension)]
    return _openssl(folder, name, *signed, *added)


def _openssl(folder: Path, name: str, *options: str) -> Path:
    certificate = folder / f"{name}.pem"
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(folder / f"{name}.key")]
    made = ["-out", str(certificate), "-days", "2", "-subj", f"/CN={name}"]
    subprocess.run(["openssl", "req", "-x509", *key, *made, *options], check=True, capture_output=True, timeout=30)
    return certificate


def _distinct_ports(count: int) -> Sequence[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(unused_port())
    return sorted(ports)
