"""Makes the load generator importable, and only it.

Its folder is not put on the path, where every script in it would be a top-level module to whoever imports by name.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "benchmarks" / "loadgen"

spec = importlib.util.spec_from_file_location(
    "loadgen", PACKAGE / "__init__.py", submodule_search_locations=[str(PACKAGE)]
)
assert spec is not None
assert spec.loader is not None
sys.modules["loadgen"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
