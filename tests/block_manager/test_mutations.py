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
# The slow ones are run last: pytest stops at the first failure.
RANDOM = ["tests/block_manager/test_manager_random.py", "tests/scheduler/test_random_work.py"]
LEFT_OUT = {"tests/block_manager/test_mutations.py", "tests/scheduler/test_state_machine.py"}


class Mutation(NamedTuple):
    """A bug: the name says what goes wrong, ``before`` occurs once in the file."""

    name: str
    file: str
    before: str
    after: str


MUTATIONS = [
    Mutation(
        "released heads are evicted before tails",
        "block_manager/loops.py",
        "for i in range(len(blocks) - 1, -1, -1):\n",
        "for i in range(len(blocks)):\n",
    ),
    Mutation(
        "a hit is not verified against its parent",
        "block_manager/loops.py",
        " and parents[block] == parent and ",
        " and ",
    ),
    Mutation(
        "a hit is not verified against its tokens",
        "block_manager/loops.py",
        " and _holds(contents, block, tokens, begin):",
        ":",
    ),
    Mutation(
        "a hash does not depend on what comes before",
        "block_manager/loops.py",
        "found[i] = before = _hash(",
        "found[i] = _hash(",
    ),
    Mutation(
        "salts share one namespace",
        "block_manager/manager.py",
        "namespace = self.cache.namespaces.id_of((tenant, salt))\n        limit =",
        'namespace = self.cache.namespaces.id_of((tenant, ""))\n        limit =',
    ),
    Mutation(
        "tenants share one namespace",
        "block_manager/manager.py",
        "namespace = self.cache.namespaces.id_of((tenant, salt))\n        limit =",
        "namespace = self.cache.namespaces.id_of((0, salt))\n        limit =",
    ),
    Mutation(
        "a whole prompt may be a prefix hit",
        "block_manager/manager.py",
        "limit = (len(tokens) - 1) // self.block_size",
        "limit = len(tokens) // self.block_size",
    ),
    Mutation(
        "idle matched blocks are not counted as taken",
        "block_manager/manager.py",
        "self.columns_for(num_tokens) - len(match.blocks) + match.idle",
        "self.columns_for(num_tokens) - len(match.blocks)",
    ),
    Mutation(
        "new blocks are taken before matched ones are shared",
        "block_manager/manager.py",
        """            self._share_prefix(match.blocks)
            self.tables.extend(row, match.blocks)
        for place in match.below:
            self.tiers.hold(place)
        self.pool.take_into(self.tables.lengthen(row, self.columns_for(len(tokens)) - len(match.blocks)))
""",
        """            self.tables.extend(row, match.blocks)
        self.pool.take_into(self.tables.lengthen(row, self.columns_for(len(tokens)) - len(match.blocks)))
        if match.blocks:
            self._share_prefix(match.blocks)
        for place in match.below:
            self.tiers.hold(place)
""",
    ),
    Mutation(
        "what is to be promoted sinks further for what it displaces",
        "block_manager/manager.py",
        """        for place in match.below:
            self.tiers.hold(place)
        self.pool.take_into(self.tables.lengthen(row, self.columns_for(len(tokens)) - len(match.blocks)))
""",
        """        self.pool.take_into(self.tables.lengthen(row, self.columns_for(len(tokens)) - len(match.blocks)))
        for place in match.below:
            self.tiers.hold(place)
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
        "if self._publish_row(row, tokens, num_computed // self.block_size):",
        "if self._publish_row(row, tokens, (num_computed + 1) // self.block_size):",
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
        "        self.cache.remove(blocks)\n",
        "",
    ),
    Mutation(
        "what follows a block that was indexed before is not held against others",
        "block_manager/loops.py",
        "            childless = False\n        else:\n",
        "            childless = True\n        else:\n",
    ),
    Mutation(
        "a namespace is not told that its first block is gone",
        "block_manager/loops.py",
        "            namespaces[first] = parents[block]\n            first += 1\n",
        "            pass\n",
    ),
    Mutation(
        "the most recently used content is evicted first",
        "block_manager/loops.py",
        "            link_last(links, block)\n            cached",
        "            link_first(links, block)\n            cached",
    ),
    Mutation(
        "a swap-out copies the wrong block",
        "block_manager/manager.py",
        "self.tiers.store(block, name)\n",
        "self.tiers.store(sources[0], name)\n",
    ),
    Mutation(
        "a swapped-out sequence loses its half-filled block",
        "block_manager/manager.py",
        "self.tables.blocks(row)[: self.columns_for(num_computed)]",
        "self.tables.blocks(row)[: num_computed // self.block_size]",
    ),
    Mutation(
        "a half-filled block comes back as a full one",
        "block_manager/manager.py",
        "swapped.num_tokens if found == len(swapped.places) else found * self.block_size",
        "found * self.block_size",
    ),
    Mutation(
        "a sequence that finds more on the device than it swapped out writes to it",
        "block_manager/manager.py",
        "if swapped is None or not below:",
        "if swapped is None:",
    ),
    Mutation(
        "a swap-out takes blocks that others use",
        "block_manager/manager.py",
        "None if used else place or self.tiers.store(block, name)",
        "place or self.tiers.store(block, name)",
    ),
    Mutation(
        "holding what lies below already needs no room",
        "block_manager/manager.py",
        "place is None or self.tiers.is_idle(place) for place in known",
        "place is None for place in known",
    ),
    Mutation(
        "storing the rest of a sequence gives up what of it lies below already",
        "block_manager/manager.py",
        "            if place is not None:\n                self.tiers.hold(place)\n",
        "            pass\n",
    ),
    Mutation(
        "promoted copies are held for ever",
        "block_manager/manager.py",
        "        self.tiers.drop(reversed(match.below))\n",
        "",
    ),
    Mutation(
        "a tier is promoted from although computing is quicker",
        "block_manager/manager.py",
        "if place is None or place.tier not in self.tiers.worthwhile:",
        "if place is None:",
    ),
    Mutation(
        "what is evicted does not sink under its own name",
        "block_manager/manager.py",
        "self.tiers.sink(Tier.DEVICE, block, self.cache.content_of(block))",
        "self.tiers.sink(Tier.DEVICE, block, root_content(block))",
    ),
    Mutation(
        "a block's name does not depend on what comes before",
        "block_manager/hashing.py",
        "blake2b(parent + tokens,",
        "blake2b(tokens,",
    ),
    Mutation(
        "namespaces share names below the device",
        "block_manager/hashing.py",
        '_digest(b"", namespace.to_bytes(8, "little", signed=True))',
        '_digest(b"", b"")',
    ),
    Mutation(
        "what is used again is not touched below",
        "block_manager/tiers.py",
        "                level.touch(known)\n",
        "",
    ),
    Mutation(
        "a block below is written over before it sinks further",
        "block_manager/tiers.py",
        """        place = Place(tier, self._take(tier, content))
        self._plan(Transfer(Tier.DEVICE, block, *place))
""",
        """        planned, self._planned = self._planned, []
        place = Place(tier, self._take(tier, content))
        self._planned = [*planned, Transfer(Tier.DEVICE, block, *place), *self._planned]
""",
    ),
    Mutation(
        "a held block is given up",
        "block_manager/tiers.py",
        "        self._levels[place.tier].share((place.block,))\n",
        "        pass\n",
    ),
    Mutation(
        "a block is fetched into the wrong place",
        "block_manager/tiers.py",
        "self._plan(Transfer(*place, Tier.DEVICE, block))",
        "self._plan(Transfer(place.tier, block, Tier.DEVICE, place.block))",
    ),
    Mutation(
        "what follows an invalidated prefix stays if something between lies elsewhere",
        "block_manager/tiers.py",
        "(*on_device, *places.values())",
        "places.values()",
    ),
    Mutation(
        "an invalidated row goes on publishing",
        "block_manager/manager.py",
        "if not self.prefix_caching or row in self._private:",
        "if not self.prefix_caching:",
    ),
    Mutation(
        "a swapped-out sequence publishes what was invalidated meanwhile",
        "block_manager/manager.py",
        "private = swapped.epoch != self._epochs[tenant]",
        "private = False",
    ),
    Mutation(
        "orphans of a failed step's blocks stay published",
        "block_manager/manager.py",
        "                if lost is not None:\n",
        "                if False:\n",
    ),
    Mutation(
        "a copy is not charged to its tenant",
        "block_manager/manager.py",
        "        self._charge(self._tenant[row], available)\n        self.copies",
        "        self.copies",
    ),
    Mutation(
        "a fork belongs to nobody",
        "block_manager/manager.py",
        "        self._tenant[target] = self._tenant[source]\n",
        "",
    ),
    Mutation(
        "a pin is not charged to its tenant",
        "block_manager/manager.py",
        "        self._charge(tenant, available)\n        return self.pins.add",
        "        return self.pins.add",
    ),
    Mutation(
        "pinning the same again changes nothing",
        "block_manager/pins.py",
        "expires=max(pin.expires, expires)",
        "expires=pin.expires",
    ),
    Mutation(
        "pinning the same again makes a second pin",
        "block_manager/manager.py",
        "if (renewed := self.pins.renew(blocks, expires)) is not None:",
        "if (renewed := self.pins.renew([-1], expires)) is not None:",
    ),
    Mutation(
        "a beginning that pins share counts twice",
        "block_manager/pins.py",
        "sum(block not in self._held for block in blocks)",
        "len(blocks)",
    ),
    Mutation(
        "frames that are needed again may still be given up",
        "block_manager/column_pool.py",
        "                self._evictable.remove(self.num_columns + column)\n            else:\n",
        "                pass\n            else:\n",
    ),
    Mutation(
        "the most recently used frames are given up first",
        "block_manager/column_pool.py",
        "            self._evictable.push_tail(self.num_columns + column)\n",
        "            self._evictable.push_head(self.num_columns + column)\n",
    ),
    Mutation(
        "what is promised to one is given to another",
        "block_manager/column_pool.py",
        "return self.num_blocks - self._used - self.promised",
        "return self.num_blocks - self._used",
    ),
    Mutation(
        "a forgotten column keeps frames that nobody sees",
        "block_manager/column_pool.py",
        "        elif not self._needs[column]:\n            self._give_up_frames(column)\n",
        "",
    ),
    Mutation(
        "adopted frames are needed by nobody",
        "block_manager/column_pool.py",
        "        self._needs[column], self._needs[other] = 1, 0\n",
        "",
    ),
    Mutation(
        "a hit ends where its window is gone",
        "block_manager/windowed.py",
        "if run >= count - self._first_seen(count * self.block_size):",
        "if run:",
    ),
    Mutation(
        "columns that a hit was cut back by count as idle",
        "block_manager/windowed.py",
        "return match._replace(blocks=columns, idle=idle,",
        "return match._replace(blocks=columns,",
    ),
    Mutation(
        "a window moves on one token early",
        "block_manager/windowed.py",
        "np.maximum(num_computed - self.groups.window + 1, 0)",
        "np.maximum(num_computed - self.groups.window + 2, 0)",
    ),
    Mutation(
        "a hit does not need the first token of its window",
        "block_manager/windowed.py",
        "return max(0, position - self.groups.window + 1) // self.block_size",
        "return max(0, position - self.groups.window + 2) // self.block_size",
    ),
    Mutation(
        "a window that moves on is not promised what comes",
        "block_manager/windowed.py",
        "            self._low[row] = low\n            self._promise(row)\n",
        "            self._low[row] = low\n",
    ),
    Mutation(
        "frames that are missing are taken, and not those that were computed again",
        "block_manager/windowed.py",
        "            self.columns.adopt(twin, mine)\n",
        "            self.columns.need(twin)\n            self.columns.leave(mine)\n",
    ),
    Mutation(
        "a copy copies one group only",
        "block_manager/windowed.py",
        "return [BlockCopy(*pair) for pair in pairs]",
        "return [BlockCopy(*pair) for pair in pairs][:1]",
    ),
    Mutation(
        "a pin keeps all frames of its prefix",
        "block_manager/windowed.py",
        "return columns[self._first_seen(len(columns) * self.block_size) :]",
        "return columns",
    ),
    Mutation(
        "a step is foreseen to be aligned with the columns",
        "block_manager/groups.py",
        "-(-(num_tokens - 1) // self.block_size) + 1",
        "-(-num_tokens // self.block_size)",
    ),
    Mutation(
        "only a tenant that needs blocks can lack them",
        "block_manager/quota.py",
        "for tenant in (*needs, *range(len(after))) if",
        "for tenant in needs if",
    ),
    Mutation(
        "nobody gives way to a window that moves on",
        "scheduler/growth.py",
        "while (shortage := self._shortage(crossing, sharing)) is not None:",
        "while (crossing or sharing) and (shortage := self._shortage(crossing, sharing)) is not None:",
    ),
    Mutation(
        "other tenants' floors are ignored",
        "block_manager/quota.py",
        "available - kept)",
        "available)",
    ),
    Mutation(
        "ceilings are ignored",
        "block_manager/quota.py",
        "return min(self.ceilings[tenant] - used[tenant], available - kept)",
        "return available - kept",
    ),
    Mutation(
        "a tenant below its floor has to give way",
        "block_manager/quota.py",
        "(not over_ceiling and used + needs.get(other, 0) > self.floors[other])",
        "not over_ceiling",
    ),
    Mutation(
        "a long prefill takes the budget of the decodes",
        "scheduler/scheduler.py",
        "seconds, some = self.config.max_num_batched_tokens - decodes, ",
        "seconds, some = self.config.max_num_batched_tokens, ",
    ),
    Mutation(
        "the oldest sequence gives way",
        "scheduler/growth.py",
        "first, *others = eligible\n",
        "first, *others = eligible[::-1]\n",
    ),
    Mutation(
        "a victim is swapped out after its copies were planned",
        "scheduler/scheduler.py",
        """        self._admission.claim()
        preemptions = self.counters.preemptions
        copies = self._growth.prepare()
""",
        """        preemptions = self.counters.preemptions
        copies = self._growth.prepare()
        self._admission.claim()
""",
    ),
    Mutation(
        "a sequence gives way once more than it may",
        "scheduler/preemption.py",
        "sequence.preemptions < self._state.config.max_preemptions",
        "sequence.preemptions <= self._state.config.max_preemptions",
    ),
    Mutation(
        "who gave way as often as it may is let in without a guarantee",
        "scheduler/admission.py",
        "return max(0, worst[tenant] - capacity, sum(worst.values()) - free_of_floors)",
        "return 0",
    ),
    Mutation(
        "a sequence that ends leaves its copies behind",
        "scheduler/state.py",
        "        self.drop_swapped(sequence)\n        sequence.become(SequenceState.FINISHED)",
        "        sequence.become(SequenceState.FINISHED)",
    ),
    Mutation(
        "what did not arrive below is believed to lie there",
        "scheduler/scheduler.py",
        "            self.manager.tiers.forget(place)\n",
        "            pass\n",
    ),
    Mutation(
        "what did not arrive on the device is believed to lie there",
        "scheduler/scheduler.py",
        "            self.manager.retract(row, on_device)\n",
        "            pass\n",
    ),
    Mutation(
        "a failed step's orphans are not looked for",
        "scheduler/scheduler.py",
        "        self.manager.retract_orphans(plan.rows.tolist())\n",
        "",
    ),
    Mutation(
        "pins never expire",
        "scheduler/pinning.py",
        "while manager.pins.next_expiry <= now:",
        "while False:",
    ),
    Mutation(
        "a preempted sequence goes to the end of the queue",
        "scheduler/queue.py",
        "bisect.insort(self._sequences, sequence, key=self.order)",
        "self._sequences.append(sequence)",
    ),
    Mutation(
        "a preempted sequence loses its last token",
        "scheduler/rows.py",
        "sequence.tokens = self.tokens(row).copy()",
        "sequence.tokens = self.tokens(row)[: self.prompt_len[row]].copy()",
    ),
    Mutation(
        "forked siblings are not told that they share a block",
        "scheduler/forks.py",
        "                state.forked.add(sibling.row)\n",
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
        "scheduler/admission.py",
        "            and len(state.running)  # with",
        "            and True  # with",
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_mutation_fits_the_source(mutation: Mutation) -> None:
    source = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert source.count(mutation.before) == 1
    compile(source.replace(mutation.before, mutation.after), mutation.file, "exec")


nightly = pytest.mark.skipif(os.environ.get("OCTAVO_NIGHTLY") != "1", reason="takes minutes; set OCTAVO_NIGHTLY=1")


@nightly
def test_nothing_is_noticed_without_a_mutation(tmp_path: Path) -> None:
    _copy_tree(tmp_path)
    done = _run_tests(tmp_path, "block_manager")
    assert done.returncode == 0, done.stdout[-2000:]


@nightly
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_mutation_is_noticed(mutation: Mutation, tmp_path: Path) -> None:
    _copy_tree(tmp_path)
    file = tmp_path / mutation.file
    file.write_text(file.read_text(encoding="utf-8").replace(mutation.before, mutation.after), encoding="utf-8")
    done = _run_tests(tmp_path, first=mutation.file.partition("/")[0])
    # A copy that cannot be imported has no failed tests, but errors.
    noticed = done.returncode == 1 and "\nFAILED " in done.stdout
    assert noticed, f"{mutation.name}: not noticed\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


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


def _run_tests(tree: Path, first: str) -> subprocess.CompletedProcess[str]:
    """Runs the tests in a copy of the tree up to the first failure, those of the ``first`` package before others."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout=120"]
    folders = sorted(("block_manager", "scheduler"), key=lambda folder: folder != first)
    files = [file for folder in folders for file in sorted((tree / "tests" / folder).glob("test_*.py"))]
    tests = [str(file.relative_to(tree)) for file in files]
    command += [test for test in tests if test not in LEFT_OUT and test not in RANDOM] + RANDOM
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
