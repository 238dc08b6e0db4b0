"""Products of tiles in vectors, as they would be compiled for other processors."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
from llvmlite import ir

from octavo.kernels.cpu import vector_decodes, vector_products, vectors


def recompiled(monkeypatch: pytest.MonkeyPatch, **properties: Any) -> Sequence[ModuleType]:
    """`vector_products` and `vector_decodes` for a processor with other properties (`octavo.kernels.cpu.vectors`)."""
    for name, value in properties.items():
        monkeypatch.setattr(vectors, name, value)
    modules = []
    for module in (vector_products, vector_decodes):
        spec = importlib.util.spec_from_file_location(f"{module.__name__}_recompiled", module.__file__)
        other = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(other)
        monkeypatch.setitem(sys.modules, module.__name__, other)
        modules.append(other)
    return modules


def emit_pairs_without(builder, x, y, total):
    """`vectors.emit_pairs` on a processor that has no such instruction."""
    kind = x.type
    high, sixteen = (ir.Constant(kind, [number] * kind.count) for number in (0xFFFF0000, 16))
    for half in (lambda words: builder.shl(words, sixteen), lambda words: builder.and_(words, high)):
        numbers = (builder.bitcast(half(words), total.type) for words in (x, y))
        total = vectors.emit_fused(builder, *numbers, total)
    return total


def pairs_in(kind: str) -> dict[str, Any]:
    """Properties of a processor that multiplies pairs of bfloat16: "instruction", or "emulated" on any.

    Skips the test where there is no such instruction.
    """
    if kind == "emulated":
        return {"IS_WIDE": True, "KNOWS_BFLOAT": True, "emit_pairs": emit_pairs_without}
    if not (vectors.IS_WIDE and vectors.KNOWS_BFLOAT):
        pytest.skip("no such instruction here")
    return {}
