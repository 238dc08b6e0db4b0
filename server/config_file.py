"""Reads a file of options: YAML, TOML or JSON, by its name. What is in it is taken for data and nothing else."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from octavo.errors import ConfigError

# Many times what all options together take. A file is read as a whole, and nesting costs stack.
MAX_BYTES = 64 * 1024


def read_document(path: Path) -> dict[str, Any]:
    """The mapping that a file holds.

    Raises:
        ConfigError: There is no such file, or it holds something else; names the file and, where it can, the line.
    """
    try:
        read = _READERS.get(path.suffix.lower())
        if read is None:
            raise ConfigError(f"is of no known kind; name it {', '.join(f'*{suffix}' for suffix in _READERS)}")
        document = read(_text(path))
        if not isinstance(document, dict):
            raise ConfigError(f"holds a {type(document).__name__}; it should hold options, such as port = 9000")
        return document
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise ConfigError("is not a file" if path.exists() else "there is no such file")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError("is not text in UTF-8") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"has more than {MAX_BYTES:,} bytes, and a file of options should not")
    if not text.strip():
        raise ConfigError("is empty; it should hold options, such as port = 9000")
    return text


def _parsed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """The parser with its complaints in one line."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except yaml.MarkedYAMLError as error:
            where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
            raise ConfigError(f"{where}{error.problem}") from None
        except (ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot be understood: {' '.join(str(error).split())}") from None
        except RecursionError:
            raise ConfigError("is nested too deeply") from None

    return read


def _unique(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    mapping: dict[Any, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise ConfigError(f"{key!r} is given twice")
        mapping[key] = value
    return mapping


def _no_number(text: str) -> NoReturn:
    raise ConfigError(f"{text} is not a number that JSON knows")


class _YamlLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Without what makes a small document large (aliases), or silently drops half of it (keys given twice)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases such as *name are not taken; write it out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        mapping = super().construct_mapping(node, deep=deep)
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return mapping


def _yaml(text: str) -> Any:
    document = yaml.load(text, Loader=_YamlLoader)
    if document is None:
        raise ConfigError("is empty; it should hold options, such as port: 9000")
    return document


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)


_READERS: Mapping[str, Callable[[str], Any]] = {
    ".yaml": _parsed(_yaml),
    ".yml": _parsed(_yaml),
    ".toml": _parsed(tomllib.loads),
    ".json": _parsed(_json),
}
