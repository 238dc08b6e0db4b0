"""Mutation check: bugs planted one at a time in a copy of the source, each of which the tests must notice.

That every mutation still fits the source is checked always; running the tests against each takes minutes and is
done with OCTAVO_NIGHTLY=1. The copy is a temporary tree: the working files are never touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Quickest first: pytest stops at the first failure.
TESTS = [
    "tests/block_manager",
    "tests/scheduler/test_queue.py",
    "tests/scheduler/test_rows.py",
    "tests/scheduler/test_scheduler.py",
    "tests/scheduler/test_random_work.py",
]


class Mutation(NamedTuple):
    """A bug: the name says what goes wrong, ``before`` occurs once in the file."""

    name: str
    file: str
    before: str
    after: str


MUTATIONS = [
    Mutation(
        "released heads are evicted before tails",
        "block_manager/manager.py",
        "self.pool.release(reversed(self.tables.clear(row)))",
        "self.pool.release(self.tables.clear(row))",
    ),
    Mutation(
        "a hit is not verified against its parent",
        "block_manager/prefix_cache.py",
        "                and self._parent[block] == parent\n",
        "",
    ),
    Mutation(
        "a hit is not verified against its tokens",
        "block_manager/prefix_cache.py",
        "                and self._tokens[block * self._width : (block + 1) * self._width] == tokens\n",
        "",
    ),
    Mutation(
        "salts share one namespace",
        "block_manager/manager.py",
        "namespace = self.pool.cache.namespaces.id_of(salt)",
        'namespace = self.pool.cache.namespaces.id_of("")',
    ),
    Mutation(
        "a whole prompt may be a prefix hit",
        "block_manager/manager.py",
        "range((len(tokens) - 1) // size)",
        "range(len(tokens) // size)",
    ),
    Mutation(
        "idle matched blocks are not counted as taken",
        "block_manager/manager.py",
        "len(match.blocks) + match.idle + keep_free",
        "len(match.blocks) + keep_free",
    ),
    Mutation(
        "new blocks are taken before matched ones are shared",
        "block_manager/manager.py",
        """        for block in match.blocks:
            self.pool.share(block)
        fresh = self.pool.take_many(self.blocks_for(num_tokens) - len(match.blocks))
""",
        """        fresh = self.pool.take_many(self.blocks_for(num_tokens) - len(match.blocks))
        for block in match.blocks:
            self.pool.share(block)
""",
    ),
    Mutation(
        "a shared block is written in place",
        "block_manager/manager.py",
        "if self.pool.owners(source) == 1:\n",
        "if self.pool.owners(source) <= 2:\n",
    ),
    Mutation(
        "a copy needs one block too few",
        "block_manager/manager.py",
        "min(count, self.pool.owners(block) - 1)",
        "min(count - 1, self.pool.owners(block) - 1)",
    ),
    Mutation(
        "blocks are published one token early",
        "block_manager/manager.py",
        "if self._publish_run(row, tokens, num_computed // self.block_size):",
        "if self._publish_run(row, tokens, (num_computed + 1) // self.block_size):",
    ),
    Mutation(
        "a merged duplicate keeps its block",
        "block_manager/manager.py",
        "            self.pool.release((mine,))\n",
        "",
    ),
    Mutation(
        "a failed step's blocks stay published",
        "block_manager/manager.py",
        "                self.pool.forget(block)\n",
        "                pass\n",
    ),
    Mutation(
        "an evicted block stays in the index",
        "block_manager/pool.py",
        """                self.cache.remove(block)
                self._idle_cached -= 1
                self.evictions""",
        """                self._idle_cached -= 1
                self.evictions""",
    ),
    Mutation(
        "the most recently used content is evicted first",
        "block_manager/pool.py",
        "                    self._free.push_tail(block)\n",
        "                    self._free.push_head(block)\n",
    ),
    Mutation(
        "a long prefill takes the budget of the decodes",
        "scheduler/scheduler.py",
        "budget = self.config.max_num_batched_tokens - int(single.sum())",
        "budget = self.config.max_num_batched_tokens",
    ),
    Mutation(
        "the oldest sequence gives way",
        "scheduler/scheduler.py",
        "        while len(crossing) + self.manager.copies_needed(sharing) > self.manager.pool.available:\n"
        "            self._preempt(self._running[-1])\n",
        "        while len(crossing) + self.manager.copies_needed(sharing) > self.manager.pool.available:\n"
        "            self._preempt(self._running[0])\n",
    ),
    Mutation(
        "a preempted sequence goes to the end of the queue",
        "scheduler/queue.py",
        "heapq.heappush(self._heap, (sequence.order, sequence))",
        "heapq.heappush(self._heap, ((10**9 + len(self._heap), 0), sequence))",
    ),
    Mutation(
        "a preempted sequence loses its last token",
        "scheduler/rows.py",
        "sequence.tokens = self.tokens(row).copy()",
        "sequence.tokens = self.tokens(row)[: self.prompt_len[row]].copy()",
    ),
    Mutation(
        "forked siblings are not told that they share a block",
        "scheduler/scheduler.py",
        "                self._forked.add(sibling.row)\n",
        "",
    ),
    Mutation(
        "the first stop token ends a sequence before its minimum",
        "scheduler/scheduler.py",
        "stops &= lengths > rows.min_len[gained]",
        "stops &= lengths >= rows.min_len[gained]",
    ),
    Mutation(
        "a sequence gets one token more than it asked for",
        "scheduler/scheduler.py",
        "lengths >= rows.limit[gained]",
        "lengths > rows.limit[gained]",
    ),
    Mutation(
        "an aborted request leaves its siblings behind",
        "scheduler/scheduler.py",
        """        for sequence in list(request.sequences):
            self._finish(sequence, FinishReason.ABORT)
""",
        """        for sequence in list(request.sequences)[:1]:
            self._finish(sequence, FinishReason.ABORT)
""",
    ),
    Mutation(
        "a waiting request that once lacked blocks waits forever",
        "scheduler/scheduler.py",
        "            self._running  # with",
        "            True  # with",
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_mutation_fits_the_source(mutation: Mutation) -> None:
    assert (ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.before) == 1


nightly = pytest.mark.skipif(os.environ.get("OCTAVO_NIGHTLY") != "1", reason="takes minutes; set OCTAVO_NIGHTLY=1")


@nightly
def test_nothing_is_noticed_without_a_mutation(tmp_path: Path) -> None:
    _copy_tree(tmp_path)
    done = _run_tests(tmp_path)
    assert done.returncode == 0, done.stdout[-2000:]


@nightly
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_mutation_is_noticed(mutation: Mutation, tmp_path: Path) -> None:
    _copy_tree(tmp_path)
    file = tmp_path / mutation.file
    file.write_text(file.read_text(encoding="utf-8").replace(mutation.before, mutation.after), encoding="utf-8")
    done = _run_tests(tmp_path)
    # 1 is a failed test; a copy that cannot be imported would be 2.
    assert done.returncode == 1, f"{mutation.name}: not noticed\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def test_the_copy_is_what_the_tests_import(tmp_path: Path) -> None:
    _copy_tree(tmp_path)
    code = "import octavo.block_manager.pool, octavo.scheduler.queue as q; print(q.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)


def _run_tests(tree: Path) -> subprocess.CompletedProcess[str]:
    """Runs the fast tests in a copy of the tree, up to the first failure."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout=120"]
    command += ["--ignore=tests/block_manager/test_mutations.py", *TESTS]
    return subprocess.run(
        command,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree / "src"), "OCTAVO_NIGHTLY": "0"},
        capture_output=True,
        text=True,
        check=False,
    )


def _copy_tree(target: Path) -> None:
    """What the tests of block manager and scheduler need, links kept as they are."""
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("src", "block_manager", "scheduler", "tests/support", "tests/block_manager", "tests/scheduler"):
        shutil.copytree(ROOT / folder, target / folder, symlinks=True, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", target)
    for conftest in (ROOT / "tests").glob("conftest.py"):
        shutil.copy(conftest, target / "tests")
