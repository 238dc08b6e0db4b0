"""One block, looked at closely."""

from __future__ import annotations

from typing import Final

import numpy as np

from octavo.block_manager.block_map import device_map, lower_map
from octavo.block_manager.tiers import Place, Tier
from octavo.engine.messages import ReadBlock
from octavo.engine.views import STATES, BlockOwner, BlockView
from octavo.errors import NotFoundError
from octavo.scheduler.scheduler import Scheduler
from octavo.scheduler.streams import keys_of

_TIERS: Final = {tier.name.lower(): tier for tier in Tier}


def block_view(scheduler: Scheduler, question: ReadBlock) -> BlockView:
    """All that is known of a block. O(num_blocks): somebody points at it.

    Raises:
        NotFoundError: There is no such block.
    """
    manager = scheduler.manager
    there = [Tier.DEVICE, *manager.tiers.existing]
    tier = _TIERS.get(question.tier)
    if tier not in there:
        names = ", ".join(tier.name.lower() for tier in there)
        raise NotFoundError(f"there is no tier {question.tier!r}; this engine has {names}", param="tier")
    pool = manager.pool if tier is Tier.DEVICE else manager.tiers.level(tier)
    if not 1 <= question.block <= pool.num_blocks:
        message = f"there is no block {question.block}; {question.tier} has 1 to {pool.num_blocks}"
        raise NotFoundError(message, param="block")
    return _device(scheduler, question) if tier is Tier.DEVICE else _below(scheduler, question, tier)


def _device(scheduler: Scheduler, question: ReadBlock) -> BlockView:
    manager, rows, place = scheduler.manager, scheduler.rows, question.block - 1
    blocks = device_map(manager, rows.num_computed, keys_of(rows.stream))
    entry = manager.entry_of(question.block)
    indexed = bool(entry) and entry in manager.cache
    age = manager.pool.age_of(entry)
    names = [tenant.name for tenant in scheduler.state.tenants]
    owners = [
        BlockOwner(sequence.request.key, sequence.index, sequence.request.tenant.name, position)
        for sequence in scheduler.state.running
        for position in np.flatnonzero(manager.tables.ids[sequence.row] == entry).tolist()
        if entry
    ]
    owners += [
        BlockOwner(0, pin.number, names[pin.tenant], pin.blocks.index(entry))
        for pin in manager.pins.listed()
        if entry in pin.blocks
    ]
    return BlockView(
        ticket=question.ticket,
        tier=question.tier,
        block=question.block,
        state=STATES[blocks.states[place]],
        owners=owners,
        filled=int(blocks.fills[place]),
        size=manager.block_size,
        hash=f"{manager.cache.hash_of(entry) & 0xFFFFFFFFFFFFFFFF:016x}" if indexed else None,
        parent=max(0, manager.cache.parent_of(entry)) if indexed else None,
        age=age.taken,
        idle=age.idle,
        hits=age.shares,
    )


def _below(scheduler: Scheduler, question: ReadBlock, tier: Tier) -> BlockView:
    manager, block = scheduler.manager, question.block
    level = manager.tiers.level(tier)
    swapped = [(s, s.swapped) for s in scheduler.waiting_sequences() if s.swapped is not None]
    blocks = lower_map(manager.tiers, tier, manager.block_size, [(s.request.key, kept) for s, kept in swapped])
    age = level.age_of(block)
    return BlockView(
        ticket=question.ticket,
        tier=question.tier,
        block=block,
        state=STATES[blocks.states[block - 1]],
        owners=[
            BlockOwner(s.request.key, s.index, s.request.tenant.name, kept.places.index(Place(tier, block)))
            for s, kept in swapped
            if Place(tier, block) in kept.places
        ],
        filled=int(blocks.fills[block - 1]),
        size=manager.block_size,
        hash=level.cache.content_of(block).digest.hex() if block in level.cache else None,
        parent=None,
        age=age.taken,
        idle=age.idle,
        hits=age.shares,
    )
