"""TLS to a broker: the context of connections, made from files in PEM format."""

from __future__ import annotations

import ssl
from collections.abc import Callable


class UnusableTlsFiles(Exception):
    """A file cannot be read or is not what it should be; the message names the setting and says what it takes."""


def tls_context(
    *, variable: Callable[[str], str], cafile: str = "", certfile: str = "", keyfile: str = "", password: str = ""
) -> ssl.SSLContext:
    """A context that checks the broker's certificate and its host name.

    Without `cafile` the system's authorities are trusted. `certfile` is shown to brokers that ask for a certificate;
    its key is in `keyfile`, or in the same file, and may be locked with `password`. `variable` names
    the environment variable of a setting.

    Raises:
        UnusableTlsFiles: a file is missing or is not what it should be.
    """
    try:
        context = ssl.create_default_context(cafile=cafile or None)
    except OSError as error:  # SSLError is one
        raise UnusableTlsFiles(
            f"{variable('kafka_ssl_cafile')}={cafile}: {_reason(error)}; it must be a file of certificates in "
            "PEM format"
        ) from error
    if keyfile and not certfile:
        raise UnusableTlsFiles(
            f"{variable('kafka_ssl_keyfile')} needs {variable('kafka_ssl_certfile')}, the certificate of that key"
        )
    if certfile:
        _show(context, certfile, keyfile, password, variable)
    return context


def _show(context: ssl.SSLContext, certfile: str, keyfile: str, password: str, variable: Callable[[str], str]) -> None:
    """Let brokers see a certificate."""
    was_asked = False

    def unlock() -> str:
        # Without this function OpenSSL would ask at the terminal.
        nonlocal was_asked
        was_asked = True
        return password

    try:
        context.load_cert_chain(certfile, keyfile or None, unlock)
    except (OSError, ValueError) as error:
        shown = f"{variable('kafka_ssl_certfile')}={certfile}"
        if was_asked:
            wrong = "is not its password" if password else "must be set"
            detail = f"the key of {shown} is locked, and {variable('kafka_ssl_password')} {wrong}"
        else:
            key = f" and {variable('kafka_ssl_keyfile')}={keyfile}" if keyfile else ""
            wanted = "they must be a certificate and its key in PEM format"
            detail = f"{shown}{key}: {_reason(error)}; {wanted}"
        raise UnusableTlsFiles(detail) from error


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "").lower().replace("_", " ")
        known = {
            "no certificate or crl found": "no certificate is in it",
            "pem lib": "it is not PEM",
            "": "it is not PEM",
        }
        return known.get(reason, reason)
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
