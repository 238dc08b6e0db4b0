"""What the front end asks between two steps, beside requests: answered at once."""

from __future__ import annotations

from octavo.block_manager.pins import Pin
from octavo.engine.block_views import block_view
from octavo.engine.core import EngineCore
from octavo.engine.messages import (
    AddPin,
    Answer,
    CheckIntegrity,
    DropPin,
    IntegrityReport,
    ListPins,
    PinInfo,
    PinReport,
    Question,
    ReadBlock,
    ReadLive,
    ReadStory,
    unpacked,
)
from octavo.engine.stories import story


def answer(core: EngineCore, question: Question) -> Answer:
    """Answers a question.

    Raises:
        ClientError, PinBudgetError: The prefix cannot be pinned, or there is no such block.
    """
    match question:
        case CheckIntegrity():
            return IntegrityReport(question.ticket, core.check_integrity())
        case ReadLive():
            return core.live.read(question)
        case ReadBlock():
            return block_view(core.scheduler, question)
        case ReadStory():
            return story(core.scheduler, question)
        case AddPin() | ListPins() | DropPin():
            return _about_pins(core, question)


def _about_pins(core: EngineCore, question: AddPin | ListPins | DropPin) -> PinReport:
    pinning = core.scheduler.pinning
    match question:
        case AddPin():
            ids, salt = unpacked(question.prompt), question.cache_salt
            pin = core.pin(ids, question.ttl, tenant=question.tenant, cache_salt=salt)
            return _report(core, question, [] if pin is None else [pin])
        case ListPins():
            return _report(core, question, pinning.listed())
        case DropPin():
            pins = [pin for pin in pinning.listed() if pin.number == question.number]
            report = _report(core, question, pins)
            pinning.drop(question.number)
            return report


def _report(core: EngineCore, question: AddPin | ListPins | DropPin, pins: list[Pin]) -> PinReport:
    state, manager = core.scheduler.state, core.scheduler.manager
    names, now = [tenant.name for tenant in state.tenants], state.clock()
    return PinReport(
        question.ticket,
        [
            PinInfo(
                number=pin.number,
                tenant=names[pin.tenant],
                num_tokens=len(pin.blocks) * manager.block_size,
                num_blocks=manager.pin_size(len(pin.blocks)),
                expires_in=max(0.0, pin.expires - now),
            )
            for pin in pins
        ],
    )
