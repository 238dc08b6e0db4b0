"""Random JSON schemas whose documents are of bounded length."""

from __future__ import annotations

import random
from typing import Any

WORDS = ("name", "age", "colour", "price", "tags", "items", "größe", "is_new", "note", "parent", "x-y", "a b")


def random_schema(rng: random.Random, depth: int = 3) -> dict[str, Any]:
    """An object schema, nested at most so deep."""
    names = rng.sample(WORDS, rng.randint(1, 3))
    return {
        "type": "object",
        "properties": {name: _value(rng, depth - 1) for name in names},
        "required": rng.sample(names, rng.randint(1, len(names))),
        "additionalProperties": False,
    }


def _value(rng: random.Random, depth: int) -> dict[str, Any]:
    makers = [_string, _integer, _enum, _constant, _pattern]
    if depth > 0:
        makers += [_array, _union, random_schema, random_schema]
    make = rng.choice(makers)
    return make(rng, depth)


def _string(rng: random.Random, depth: int) -> dict[str, Any]:
    least = rng.randint(0, 3)
    return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 8)}


def _integer(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randint(-1000, 1000)
    return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 5000)}


def _enum(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": rng.sample(["red", "grün", 'say "x"', 1, 2.5, None, True, "back\\slash"], rng.randint(1, 4))}


def _constant(rng: random.Random, depth: int) -> dict[str, Any]:
    return rng.choice([{"const": "fixed"}, {"type": "boolean"}, {"type": "null"}])


def _pattern(rng: random.Random, depth: int) -> dict[str, Any]:
    patterns = [r"^[a-z]{2,6}$", r"^\d{3}-\d{2}$", r"^(yes|no)$", r"^[A-Z][a-z]+$"]
    return {"type": "string", "pattern": rng.choice(patterns), "maxLength": 12}


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    least = rng.randint(0, 2)
    return {
        "type": "array",
        "items": _value(rng, depth - 1),
        "minItems": least,
        "maxItems": least + rng.randint(0, 2),
    }


def _union(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_value(rng, depth - 1), {"type": "null"}]}
