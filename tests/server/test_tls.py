"""Certificates that cannot be used are told at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from self_signed import make_certificate

from octavo.errors import ConfigError
from octavo.server.tls import check_certificate


def test_a_certificate_and_its_key(certificate: tuple[str, str]) -> None:
    check_certificate(*certificate)


@pytest.mark.parametrize(
    ("certificate_file", "key_file", "words"),
    [
        ("none", "key", "cannot read .*none: No such file"),
        ("cert", "none", "cannot read .*none: No such file"),
        ("key", "key", "PEM form"),
        ("text", "key", "PEM form"),
        ("cert", "text", "PEM form"),
        ("cert", "cert", "PEM form"),
        ("cert", "other key", "the key is not this certificate's"),
        ("locked cert", "locked key", "without a passphrase"),
    ],
)
def test_what_is_none(
    tmp_path: Path, certificate: tuple[str, str], certificate_file: str, key_file: str, words: str
) -> None:
    (tmp_path / "text").write_text("hello")
    make_certificate(str(tmp_path / "other cert"), str(tmp_path / "other key"))
    make_certificate(str(tmp_path / "locked cert"), str(tmp_path / "locked key"), passphrase="secret")
    files = {"cert": certificate[0], "key": certificate[1]}
    with pytest.raises(ConfigError, match=words):
        check_certificate(*(files.get(name, str(tmp_path / name)) for name in (certificate_file, key_file)))
