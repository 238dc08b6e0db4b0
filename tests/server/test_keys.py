"""Reading API keys, and telling whose one is."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest
from api_keys import ADA, ADMIN, OWNERS, WRONG, some_keys

from octavo.errors import ConfigError
from octavo.server.keys import Identity, line_of, new_key, read_keys

TENANTS = {"default", "ada", "grace"}
DIGEST = hashlib.sha256(ADA.encode()).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.touch(mode=0o600)
    return path


@pytest.mark.parametrize(
    ("line", "identity"),
    [
        (ADA, Identity("default")),
        (f"{ADA} tenant=ada", Identity("ada")),
        (f"  {ADA}\tadmin tenant=ada   # hers", Identity("ada", admin=True)),
        (f"sha256:{DIGEST} tenant=ada", Identity("ada")),
        (f"# keys\n\n{ADA}#1", None),
    ],
)
def test_a_line_of_the_file(file: Path, line: str, identity: Identity | None) -> None:
    file.write_text(line + "\n")
    keys = read_keys(str(file), None, TENANTS)
    assert keys is not None
    assert len(keys) == 1
    assert keys.identify(ADA.encode()) == identity


def test_keys_from_the_environment_and_a_file(file: Path) -> None:
    file.write_text(f"{ADA} tenant=ada admin\n")
    keys = read_keys(str(file), f"{WRONG}, {ADMIN}=grace,padded-as-base64-is==", TENANTS)
    assert keys is not None
    assert keys.tenants == ["ada", "default", "grace"]
    assert keys.identify(ADA.encode()) == Identity("ada", admin=True)
    assert keys.identify(WRONG.encode()) == Identity()
    assert keys.identify(ADMIN.encode()) == Identity("grace")
    assert keys.identify(b"padded-as-base64-is==") == Identity()


def test_a_made_key_is_known_by_its_line(file: Path) -> None:
    made = {new_key() for _ in range(3)}
    assert len(made) == 3
    file.write_text("".join(f"{line_of(key, 'ada', admin=True)}\n" for key in made))
    keys = read_keys(str(file), None, TENANTS)
    assert keys is not None
    assert [keys.identify(key.encode()) for key in made] == [Identity("ada", admin=True)] * 3
    assert not any(key in file.read_text() for key in made)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no API keys"),
        ("# none\n", "has no API keys"),
        ("short", "at least 16"),
        ("schlüssel-mit-umlaut", "ASCII"),
        ("sha256:abc", "64 lower-case hexadecimal digits"),
        (f"\n{ADA} tenant=nobody", "line 2: there is no tenant 'nobody'; --tenants has ada, default, grace"),
        (f"{ADA}\nsha256:{DIGEST}", "line 2: this key is there already"),
        (f"{ADA} root", "line 1 is not understood"),
        (f"tenant=ada-and-then {ADA}", "line 1 is not understood"),
        (f"{ADA} tenant=ada tenant=grace", "line 1 is not understood"),
        (f"{ADA} {WRONG}", "line 1 is not understood"),
    ],
)
def test_what_is_no_file_of_keys(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        read_keys(str(file), None, TENANTS)
    assert ADA not in str(caught.value)
    assert WRONG not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [("", "OCTAVO_API_KEY has no API keys"), ("short", "OCTAVO_API_KEY, key 1"), (f"{ADA}=nobody", "'nobody'")],
)
def test_what_is_no_key_in_the_environment(value: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_keys(None, value, TENANTS)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_keys(str(tmp_path / "none"), None, TENANTS)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="utf-8"):
        read_keys(str(tmp_path / "binary"), None, TENANTS)


@pytest.mark.parametrize(
    ("line", "mode", "warned"),
    [(ADA, 0o600, ""), (ADA, 0o640, "read or changed"), (f"sha256:{DIGEST}", 0o644, ""),
     (f"sha256:{DIGEST}", 0o664, "changed")],
)  # fmt: skip
def test_a_file_that_others_can_use(
    file: Path, line: str, mode: int, warned: str, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text(line)
    file.chmod(mode)
    read_keys(str(file), None, TENANTS)
    assert (f"can be {warned} by other users" in caplog.text) == bool(warned)


@pytest.mark.parametrize("given", [*OWNERS, WRONG, "", f"sha256:{DIGEST}", DIGEST])
def test_a_key_is_compared_with_every_other(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, compared = some_keys(), 0
    compare = hmac.compare_digest

    def count(one: bytes, other: bytes) -> bool:
        nonlocal compared
        compared += 1
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", count)
    assert keys.identify(given.encode()) == OWNERS.get(given)
    assert compared == len(OWNERS)
