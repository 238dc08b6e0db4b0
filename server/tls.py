"""HTTPS: the certificate, checked before anything else is done."""

from __future__ import annotations

import ssl

from octavo.errors import ConfigError


def check_certificate(certificate: str, key: str) -> None:
    """Reads a certificate and its key, as uvicorn will once the model is loaded.

    Args:
        certificate: A PEM file with the chain. key: a PEM file with its private key, without a passphrase.

    Raises:
        ConfigError: A file cannot be read, or they do not belong together.
    """
    try:
        for file in (certificate, key):
            with open(file, "rb"):
                pass
        # With a password, though a wrong one, OpenSSL does not ask for it on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"--tls-cert {certificate} --tls-key {key}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    if not isinstance(error, ssl.SSLError):
        return f"cannot read {error.filename}: {error.strerror}"
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key is not this certificate's"
    return f"not a certificate chain and its key in PEM form, without a passphrase ({error.reason or error})"
