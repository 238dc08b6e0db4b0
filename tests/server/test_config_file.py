"""Files of options: what is read, and that whatever else they hold is one line that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.errors import ConfigError
from octavo.server.config_file import MAX_BYTES, read_document

EXPECTED = {"model": "org/name", "server": {"port": 9000, "host": "0.0.0.0"}, "prefix_caching": False}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "model: org/name\nserver: {port: 9000, host: 0.0.0.0}\nprefix_caching: no\n"),
        ("a.YML", "# options\nmodel: org/name\nserver:\n  port: 9000\n  host: 0.0.0.0\nprefix_caching: false\n"),
        ("a.toml", 'model = "org/name"\nprefix_caching = false\n[server]\nport = 9000\nhost = "0.0.0.0"\n'),
        ("a.json", '{"model": "org/name", "server": {"port": 9000, "host": "0.0.0.0"}, "prefix_caching": false}'),
    ],
)
def test_three_kinds(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_document(tmp_path / name) == EXPECTED


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.ini", "port=1", r"of no known kind; name it \*\.yaml"),
        ("a", "port: 1", "of no known kind"),
        ("a.yaml", "", "is empty"),
        ("a.yaml", "# nothing\n", "is empty"),
        ("a.toml", " \n", "is empty"),
        ("a.json", "", "is empty"),
        ("a.yaml", "- port\n", "holds a list"),
        ("a.yaml", "port", "holds a str"),
        ("a.json", "9000", "holds a int"),
        ("a.yaml", "port: [1\n", "line 2: "),
        ("a.yaml", "port: 1\nhost: a\nport: 2\n", "line 3: 'port' is given twice"),
        ("a.yaml", "server:\n  port: 1\n  port: 2\n", "line 3: 'port' is given twice"),
        ("a.json", '{"port": 1, "port": 2}', "'port' is given twice"),
        ("a.json", '{"server": {"port": 1, "port": 2}}', "'port' is given twice"),
        ("a.toml", "port = 1\nport = 2\n", "cannot be understood: .*line 2"),
        ("a.json", '{"port": NaN}', "NaN is not a number that JSON knows"),
        ("a.json", '{"port": 1,}', "cannot be understood"),
        ("a.yaml", "a: &a [1]\nb: *a\n", "line 2: aliases"),
        ("a.yaml", "a: !!python/object/apply:os.system [id]\n", "line 1: could not determine a constructor"),
        ("a.yaml", "? [a]\n: 1\n", "line 1: "),
        ("a.yaml", "port: 1\x00\n", "cannot be understood"),
        ("a.yaml", "a: " + "[" * 20_000, "nested too deeply"),
        ("a.json", '{"a":' + "[" * 20_000, "nested too deeply"),
        ("a.yaml", "port: 1 # " + "x" * MAX_BYTES, f"has more than {MAX_BYTES:,} bytes"),
    ],
)
def test_what_is_no_file_of_options(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=words) as raised:
        read_document(tmp_path / name)
    assert str(raised.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(raised.value)


def test_a_bomb_of_aliases_is_refused_before_it_grows(tmp_path: Path) -> None:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    (tmp_path / "a.yaml").write_text("\n".join(["a0: &a0 [lol]", *levels]))
    with pytest.raises(ConfigError, match="line 2: aliases"):
        read_document(tmp_path / "a.yaml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        read_document(tmp_path / "none.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match="is not a file"):
        read_document(tmp_path / "folder.yaml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not text in UTF-8"):
        read_document(tmp_path / "binary.toml")
