"""Rows: what a sequence brings into its row and takes out of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from factories import make_request

from octavo.scheduler.request import NO_ROW, Sequence
from octavo.scheduler.rows import Rows
from octavo.scheduler.sampling import POOLINGS
from octavo.scheduler.tenants import Tenant

PROMPT = [5, 6, 7]


def make_sequence(index: int = 0, **fields: Any) -> Sequence:
    request = make_request(prompt=PROMPT, key=3, **fields)
    return Sequence(request, index, request.prompt)


@pytest.fixture
def rows() -> Rows:
    return Rows(2, 16)


def test_a_sequence_brings_its_tokens_and_counters(rows: Rows) -> None:
    row = rows.occupy(sequence := make_sequence(index=1), num_computed=2)
    assert rows.tokens(row).tolist() == PROMPT
    assert (rows.num_tokens[row], rows.num_computed[row], rows.prompt_len[row], rows.limit[row]) == (3, 2, 3, 10)
    assert rows.stream[row] == sequence.stream
    assert rows.owner[row] is sequence
    assert sequence.row == row
    assert rows.available == 1


def test_a_sequence_takes_its_tokens_along(rows: Rows) -> None:
    row = rows.occupy(sequence := make_sequence(), num_computed=0)
    rows.token_ids[row, 3] = 9
    rows.num_tokens[row] = 4
    rows.vacate(sequence)
    rows.token_ids[row] = 0
    assert sequence.tokens.tolist() == [*PROMPT, 9]
    assert sequence.row == NO_ROW
    assert rows.owner[row] is None
    assert rows.available == 2


def test_sampling_parameters_become_columns(rows: Rows) -> None:
    row = rows.occupy(make_sequence(temperature=0.5, top_k=7, top_p=0.25, min_p=0.125, min_tokens=4), 0)
    assert (rows.temperature[row], rows.top_k[row], rows.top_p[row], rows.min_p[row]) == (0.5, 7, 0.25, 0.125)
    assert rows.min_len[row] == 3 + 4


def test_both_spellings_of_all_tokens_become_top_k_zero(rows: Rows) -> None:
    assert [rows.top_k[rows.occupy(make_sequence(top_k=k), 0)] for k in (-1, 0)] == [0, 0]


def test_the_largest_min_tokens_fits_its_column(rows: Rows) -> None:
    row = rows.occupy(make_sequence(min_tokens=2**31 - 1), 0)
    assert rows.min_len[row] >= rows.limit[row]


def test_stop_rules_become_flags(rows: Rows) -> None:
    plain = rows.occupy(make_sequence(), 0)
    other = rows.occupy(make_sequence(ignore_eos=True, stop_token_ids=(4,)), 0)
    assert (rows.stops_at_eos[plain], rows.has_stop_ids[plain]) == (True, False)
    assert (rows.stops_at_eos[other], rows.has_stop_ids[other]) == (False, True)


def test_a_sequence_brings_its_tenants_number(rows: Rows) -> None:
    numbers = [
        rows.tenant[rows.occupy(make_sequence(tenant=Tenant(name, index)), 0)] for index, name in enumerate("ab")
    ]
    assert numbers == [0, 1]


def test_what_outputs_are_chosen_by_becomes_columns(rows: Rows) -> None:
    likeliest = rows.occupy(make_sequence(best_of=3), 0)
    beam = rows.occupy(make_sequence(beam_width=4), 0)
    assert (rows.wants_logprobs[likeliest], rows.beam_width[likeliest]) == (True, 0)
    assert (rows.wants_logprobs[beam], rows.beam_width[beam]) == (False, 4)


def test_pooling_becomes_a_column(rows: Rows) -> None:
    kinds = [rows.pooling[rows.occupy(make_sequence(pooling=kind, max_tokens=1), 0)] for kind in ("last", "mean")]
    assert [POOLINGS[kind] for kind in kinds] == ["last", "mean"]


def test_only_the_first_sequence_has_siblings_to_fork(rows: Rows) -> None:
    assert rows.unforked[rows.occupy(make_sequence(0, unforked=2), 0)]
    assert not rows.unforked[rows.occupy(make_sequence(1, unforked=2), 0)]


def test_siblings_have_seeds_of_their_own(rows: Rows) -> None:
    seeds = [int(rows.seed[rows.occupy(make_sequence(index, seed=11), 0)]) for index in (0, 1)]
    assert seeds[0] == 11
    assert seeds[1] != seeds[0]


@pytest.mark.parametrize("seed", [-(2**63), -1, 2**63 - 1])
def test_every_allowed_seed_fits_its_column(rows: Rows, seed: int) -> None:
    assert rows.seed[rows.occupy(make_sequence(0, seed=seed), 0)] == np.uint64(seed % 2**64)


def test_a_row_forgets_the_sequence_before(rows: Rows) -> None:
    sampling: dict[str, Any] = {"temperature": 0.5, "top_k": 7, "min_tokens": 4, "best_of": 2}
    stops: dict[str, Any] = {"ignore_eos": True, "stop_token_ids": (4,)}
    first = make_sequence(**sampling, **stops, unforked=1, tenant=Tenant("a", 1))
    row = rows.occupy(first, 3)
    rows.vacate(first)
    assert rows.occupy(make_sequence(temperature=1.0), 0) == row
    fresh = Rows(1, 16)
    fresh.occupy(make_sequence(temperature=1.0), 0)
    for name, column in vars(fresh).items():
        if isinstance(column, np.ndarray):
            assert getattr(rows, name)[row].tolist() == column[0].tolist(), name
