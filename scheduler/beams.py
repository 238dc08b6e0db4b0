"""Beam search: the likeliest continuations of a prompt, several at a time, in shared blocks.

Every beam is a sequence with a row. After each step the best (beam, token) pairs are the next beams: a beam with
several successors is forked for all but the first of them, into the rows of beams that have none. Forks share blocks,
down to a last partial one, and the first to write copies it.

The rules are those of transformers' ``generate(num_beams=…, early_stopping=False)``: of a step's pairs, those among
the ``width`` best that end in a stop token are outputs; the others go on; the search ends when no beam can beat the
worst of ``width`` outputs any more, or at the length limit.

A search is all or nothing: its rows are kept for it from its admission on, and if one of its beams has to give way it
starts over (its prompt is still cached, and its result the same).
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import NamedTuple

from octavo.scheduler.history import EventKind
from octavo.scheduler.plan import Float32s, Int32s
from octavo.scheduler.request import Candidate, FinishReason, Request, Sequence, SequenceState
from octavo.scheduler.state import State


class Successor(NamedTuple):
    """A next beam: which of the present ones it continues, with which token, and its log-probability then."""

    beam: int
    token: int
    logprob: float


@dataclass(slots=True)
class Step:
    """What one step decides: the next beams, best first, and the pairs that ended."""

    successors: list[Successor] = field(default_factory=list)
    ended: list[Successor] = field(default_factory=list)


def next_step(
    logprobs: Many[float], tokens: Int32s, token_logprobs: Float32s, *, stops: frozenset[int], width: int
) -> Step:
    """Ranks all pairs of beam and token.

    Args:
        logprobs: Per beam, so far.
        tokens, token_logprobs: ``[num_beams, ≥ 2 · width]``, each beam's likeliest tokens.
        stops: Tokens that end an output now.
    """
    pairs = [
        Successor(beam, int(token), so_far + float(logprob))
        for beam, so_far in enumerate(logprobs)
        for token, logprob in zip(tokens[beam], token_logprobs[beam], strict=True)
        if logprob > -math.inf
    ]
    pairs.sort(key=lambda pair: -pair.logprob)  # stable: of equals the earlier beam, then the lower token
    step = Step()
    for rank, pair in enumerate(pairs):
        if pair.token in stops:
            if rank < width:
                step.ended.append(pair)
        elif len(step.successors) < width:
            step.successors.append(pair)
    return step


class Beams:
    """Carries beam searches on. Changes running, rows and blocks, between two steps."""

    def __init__(self, state: State, eos_token_ids: frozenset[int]) -> None:
        self._state = state
        self._eos = eos_token_ids

    def advance(self, beams: list[Sequence], tokens: Int32s, token_logprobs: Float32s) -> bool:
        """Takes in the candidates of all beams of one search, one row for each; True if the search is done."""
        rows, request = self._state.rows, beams[0].request
        width = request.sampling.beam_width
        length = int(rows.num_tokens[beams[0].row])
        scores, stops = [beam.logprob for beam in beams], self._stops(request, length)
        step = next_step(scores, tokens, token_logprobs, stops=stops, width=width)
        for pair in step.ended:
            output = [*self._output(beams[pair.beam]), pair.token]
            self._add(request, Candidate(tuple(output), pair.logprob, FinishReason.STOP, pair.token))
        self._become(beams, step.successors)
        if length + 1 >= request.limit:
            for beam in request.sequences:
                self._add(request, Candidate(tuple(self._output(beam)), beam.logprob, FinishReason.LENGTH))
            return True
        return not request.sequences or not self._can_improve(request, length + 1)

    def leave_row(self, sequence: Sequence) -> None:
        """Takes a running sequence's blocks and row; one that is a beam has its search start over, as this sequence."""
        request = sequence.request
        if not request.sampling.beam_width:
            self._state.leave_row(sequence)
            return
        for beam in [beam for beam in request.sequences if beam is not sequence]:
            self._drop(beam)
        request.outputs.clear()
        self._let_go(request)
        self._state.leave_row(sequence)
        sequence.tokens = request.prompt
        sequence.renumber(0)
        sequence.logprob = 0.0

    def hold(self, request: Request) -> None:
        """Keeps rows for the beams that are to come; the caller has checked that they are available."""
        request.held_rows = max(0, request.sampling.beam_width - 1)
        self._state.rows.hold(request.held_rows)

    def end(self, request: Request) -> None:
        """Ends a search that is done; what came of it is in the request's outputs."""
        for beam in list(request.sequences):
            self._drop(beam)
        self._let_go(request)
        for index, output in enumerate(request.outputs[: request.sampling.n]):
            told = {"reason": str(output.reason), "output_tokens": len(output.tokens)}
            request.history.add(self._state.clock(), EventKind.FINISHED, index, told)
        self._state.forget(request)

    def _let_go(self, request: Request) -> None:
        """Gives back the rows that were kept and not used."""
        self._state.rows.hold(-request.held_rows)
        request.held_rows = 0

    def _stops(self, request: Request, length: int) -> frozenset[int]:
        sampling = request.sampling
        if length + 1 <= len(request.prompt) + sampling.min_tokens:
            return frozenset()
        return frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else self._eos)

    def _become(self, beams: list[Sequence], successors: list[Successor]) -> None:
        """Gives every successor a row: the first of each beam stays in its row, others are forked off."""
        state, heirs = self._state, dict[int, Successor]()
        others = [new for new in successors if heirs.setdefault(new.beam, new) is not new]
        idle = [beam for number, beam in enumerate(beams) if number not in heirs]
        placed = [(beams[successor.beam], successor) for successor in heirs.values()]
        for successor in others:
            source = beams[successor.beam]
            placed.append((self._fork(source, idle.pop() if idle else None), successor))
        for beam in idle:
            self._drop(beam)
        for beam, successor in placed:
            beam.logprob = successor.logprob
            state.rows.append(beam.row, successor.token)

    def _fork(self, source: Sequence, target: Sequence | None) -> Sequence:
        """A beam with the same tokens and blocks, in the row of one that is of no use any more or in a new one."""
        state, request = self._state, source.request
        if target is not None:
            state.manager.release(target.row)
            state.rows.copy(source.row, target.row)
        else:
            free = next(i for i in range(request.sampling.beam_width) if all(s.index != i for s in request.sequences))
            target = state.new_sequence(request, free)
            target.tokens = state.rows.tokens(source.row)
            request.held_rows -= 1
            state.rows.hold(-1)
            state.rows.occupy(target, int(state.rows.num_computed[source.row]))
            state.run(target)
        target.preemptions = source.preemptions  # of the search
        state.manager.fork(source.row, target.row)
        state.forked.update((source.row, target.row))
        state.counters.forks += 1
        return target

    def _drop(self, beam: Sequence) -> None:
        """Ends a beam that leads nowhere; nobody hears of it."""
        self._state.leave_row(beam)
        beam.become(SequenceState.FINISHED)
        beam.request.sequences.remove(beam)
        beam.request.held_rows += 1
        self._state.rows.hold(1)

    def _output(self, beam: Sequence) -> list[int]:
        output: list[int] = self._state.rows.tokens(beam.row)[len(beam.request.prompt) :].tolist()
        return output

    def _add(self, request: Request, candidate: Candidate) -> None:
        """Keeps the ``width`` best outputs."""
        request.outputs.append(candidate)
        request.outputs.sort(key=lambda output: -output.score(request.sampling.length_penalty))
        del request.outputs[request.sampling.beam_width :]

    def _can_improve(self, request: Request, length: int) -> bool:
        """Whether the best beam, if it ended now, would beat the worst output kept."""
        penalty, outputs = request.sampling.length_penalty, request.outputs
        if len(outputs) < request.sampling.beam_width:
            return True
        likeliest = max(beam.logprob for beam in request.sequences)
        best = Candidate((0,) * (length - len(request.prompt)), likeliest, FinishReason.LENGTH)
        return best.score(penalty) > outputs[-1].score(penalty)
