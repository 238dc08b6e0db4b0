"""What all viewers have been told, kept whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from octavo.engine.views import LiveView, PreemptionView, TierCells
from octavo.server.limits import MAX_LIVE_PREEMPTIONS
from octavo.server.live.messages import COLUMNS, LiveMessage

# Of `TierCells`, the arrays with an entry for each cell.
_CELL_TYPES: Final = {"states": np.uint8, "owners": np.int32, "fills": np.uint8, "counts": np.uint8}


@dataclass(frozen=True)
class _Tier:
    """All cells of a tier as they were last told: arrays by the names in `_CELL_TYPES`."""

    tier: str
    num_blocks: int
    blocks_per_cell: int
    arrays: dict[str, npt.NDArray[Any]]

    @classmethod
    def of(cls, told: TierCells) -> _Tier:
        arrays = {name: np.frombuffer(getattr(told, name), kind).copy() for name, kind in _CELL_TYPES.items()}
        return cls(told.tier, told.num_blocks, told.blocks_per_cell, arrays)

    def takes(self, told: TierCells) -> bool:
        """Whether these are changes of this tier."""
        return (self.num_blocks, self.blocks_per_cell) == (told.num_blocks, told.blocks_per_cell)

    def update(self, told: TierCells) -> None:
        cells = np.frombuffer(told.cells, np.int32)
        for name, kind in _CELL_TYPES.items():
            self.arrays[name][cells] = np.frombuffer(getattr(told, name), kind)

    def whole(self) -> TierCells:
        arrays = {name: array.tobytes() for name, array in self.arrays.items()}
        return TierCells(self.tier, self.num_blocks, self.blocks_per_cell, b"", **arrays)


class Picture:
    """What viewers have been told, so that another one can be told all of it at once."""

    def __init__(self) -> None:
        self._tiers: dict[str, _Tier] = {}
        self._preemptions: dict[int, tuple[float, PreemptionView]] = {}
        self._names: dict[int, str] = {}
        self._latest: LiveMessage | None = None

    @property
    def empty(self) -> bool:
        return self._latest is None

    def fits(self, view: LiveView, engine: int) -> bool:
        """Whether an answer tells changes of what is here: the same engine's, with the same tiers."""
        told = {tier.tier: tier for tier in view.tiers}
        same_engine = self._latest is not None and self._latest.engine == engine
        same_tiers = told.keys() == self._tiers.keys()
        return same_engine and same_tiers and all(tier.takes(told[name]) for name, tier in self._tiers.items())

    def change(self, message: LiveMessage) -> LiveMessage:
        """Takes an answer in; returns it as viewers are told it who know what came before."""
        for told in message.tiers:
            if self.empty:
                self._tiers[told.tier] = _Tier.of(told)
            else:
                self._tiers[told.tier].update(told)
        self._preemptions |= {view.number: (message.seconds, view) for view in message.preemptions}
        for number in sorted(self._preemptions)[:-MAX_LIVE_PREEMPTIONS]:
            del self._preemptions[number]
        news = {key: name for key, name in message.names.items() if key not in self._names}
        past = {key for _, view in self._preemptions.values() for key in (view.victim, view.beneficiary)}
        self._names = {key: name for key, name in self._names.items() if key in past} | message.names
        self._latest = message
        return msgspec.structs.replace(message, names=news)

    def whole(self, status: str) -> LiveMessage:
        """All of it, at a time when the engine has this status."""
        assert self._latest is not None
        now = self._latest.seconds
        preemptions = [
            msgspec.structs.replace(view, ago=view.ago + now - told) for told, view in self._preemptions.values()
        ]
        return msgspec.structs.replace(
            self._latest,
            kind="all",
            status=status,
            columns=COLUMNS,
            tiers=[tier.whole() for tier in self._tiers.values()],
            preemptions=preemptions,
            names=self._names,
        )
