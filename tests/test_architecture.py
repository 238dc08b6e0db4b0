"""The rules of docs/architecture.md that a reader cannot see by looking: who imports whom, and what is shipped."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("server", "engine", "models", "kernels", "scheduler", "block_manager")
LEAVES = {"config", "errors", "logs"}

# Who may import whom; everybody may import the leaves.
ARROWS = {
    "server": {"engine", "scheduler"},
    "engine": {"scheduler", "block_manager", "models", "kernels"},
    "scheduler": {"block_manager"},
    "models": {"kernels"},
    "kernels": set(),
    "block_manager": set(),
}

# What the front end may know of the engine and the scheduler: none of these loads torch.
FRONT_END_MAY_IMPORT = {
    "octavo.engine.client",
    "octavo.engine.detokenizer",
    "octavo.engine.doctor.examination",
    "octavo.engine.doctor.finding",
    "octavo.engine.messages",
    "octavo.engine.prepare",
    "octavo.engine.tokenizer",
    "octavo.engine.views",
    "octavo.scheduler.sampling",
}


def imports(file: Path) -> Iterator[str]:
    """Names of octavo modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("octavo"))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("octavo"):
            assert node.level == 0
            yield node.module


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_follow_the_arrows(folder: str) -> None:
    allowed = ARROWS[folder] | LEAVES | {folder}
    for file in (ROOT / folder).rglob("*.py"):
        for name in imports(file):
            target = name.split(".")[1] if "." in name else "octavo"
            assert target in allowed | {"octavo"}, f"{file.relative_to(ROOT)} imports {name}"


def test_front_end_knows_only_the_engines_public_modules() -> None:
    for file in (ROOT / "server").rglob("*.py"):
        for name in imports(file):
            if name.startswith(("octavo.engine", "octavo.scheduler")):
                assert name in FRONT_END_MAY_IMPORT, f"{file.relative_to(ROOT)} imports {name}"


def test_leaves_import_nothing_of_ours_but_errors() -> None:
    assert set(imports(ROOT / "src/octavo/errors.py")) == set()
    assert set(imports(ROOT / "src/octavo/logs.py")) == set()
    assert set(imports(ROOT / "src/octavo/config.py")) <= {"octavo.errors"}


def test_kernels_is_a_namespace_portion() -> None:
    # A regular top-level package `kernels` on sys.path would shadow Hugging Face's `kernels` library, which
    # transformers imports when it is installed: `from transformers import AutoConfig` would fail in this folder.
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize("folder", FOLDERS)
def test_package_folders_are_relative_links(folder: str) -> None:
    link = ROOT / "src" / "octavo" / folder
    assert link.is_symlink()
    assert str(link.readlink()) == f"../../{folder}"


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("octavo", ("torch", "transformers", "numba")),
        ("octavo.block_manager.manager", ("torch", "transformers")),
        ("octavo.scheduler.scheduler", ("torch", "transformers")),
        (
            "octavo.server.commands.serve, octavo.server.commands.chat, octavo.server.commands.doctor, "
            "octavo.server.commands.top",
            ("torch", "transformers", "numba"),
        ),
        (
            "octavo.server.app, octavo.server.cli, octavo.engine.client, octavo.engine.prepare",
            ("torch", "transformers", "numba"),
        ),
    ],
)
def test_loads_no_torch(modules: str, absent: tuple[str, ...]) -> None:
    code = f"import {modules}, sys; print([m for m in {absent} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_wheel_holds_only_octavo(tmp_path: Path) -> None:
    # From a copy: what an earlier build has left in the tree must not get into the wheel.
    source = tmp_path / "source"
    left_out = (".*", "build", "dist", "tests", "benchmarks", "docs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(*left_out))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    subprocess.run(build, capture_output=True, text=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"octavo", next(top for top in tops if top.endswith(".dist-info"))}
    for folder in FOLDERS:
        shipped = {name.removeprefix("octavo/") for name in names if name.startswith(f"octavo/{folder}/")}
        ours = {str(file.relative_to(ROOT)) for file in (ROOT / folder).rglob("*.py")}
        assert {name for name in shipped if name.endswith(".py")} == ours
    assert "octavo/py.typed" in names
    assert {f"octavo/server/ui/{file.name}" for file in (ROOT / "server" / "ui").iterdir()} <= set(names)
