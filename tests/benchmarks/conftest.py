"""Makes what the benchmarks are made of importable, and only that.

Their folder is not put on the path, where every script in it would be a top-level module to whoever imports by name.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name: str, file: Path, package: Path | None = None) -> None:
    """Imports a file under a name."""
    locations = [str(package)] if package else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=locations)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


load("loadgen", BENCHMARKS / "loadgen" / "__init__.py", BENCHMARKS / "loadgen")
load("scheduler_work", BENCHMARKS / "scheduler_work.py")
load("scheduler_benchmark", BENCHMARKS / "scheduler.py")
load("soak", BENCHMARKS / "soak.py")
load("stub_peer", Path(__file__).with_name("stub_peer.py"))
