"""Certificates for tests of HTTPS."""

from __future__ import annotations

import shutil
import subprocess

import pytest


def make_certificate(certificate: str, key: str, *, passphrase: str = "") -> None:
    """Writes a certificate for 127.0.0.1, signed by itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    protection = ["-passout", f"pass:{passphrase}"] if passphrase else ["-nodes"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=octavo"]
    name = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, *name, *protection, "-out", certificate, "-keyout", key], check=True, capture_output=True)
