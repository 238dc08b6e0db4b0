"""Pins: numbered, within a budget that counts shared beginnings once, listed in the order in which they expire."""

from __future__ import annotations

import dataclasses
import math

import pytest

from octavo.block_manager.pins import Pin, Pins


def add(pins: Pins, *blocks: int, expires: float = 1.0) -> Pin:
    assert pins.missing(blocks) == 0
    return pins.add(blocks, -2, 0, expires)


def test_at_first_nothing_is_pinned() -> None:
    pins = Pins(4)
    assert (len(pins), pins.num_blocks, pins.listed(), pins.next_expiry) == (0, 0, [], math.inf)


def test_a_pin_remembers_what_it_was_added_with() -> None:
    pins = Pins(4)
    pin = pins.add([3, 5], -7, 2, 12.5)
    assert (pin.blocks, pin.namespace, pin.tenant, pin.expires) == ((3, 5), -7, 2, 12.5)
    assert pins.find(pin.number) is pin
    assert len(pins) == 1


def test_a_pin_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        add(Pins(4), 1).expires = 2.0  # type: ignore[misc]


def test_a_pins_number_is_never_used_again() -> None:
    pins, numbers = Pins(4), set()
    for _ in range(5):
        pin = add(pins, 1)
        numbers.add(pin.number)
        pins.remove(pin)
    assert len(numbers) == 5
    assert 0 not in numbers


def test_a_number_that_no_pin_has_is_not_found() -> None:
    pins = Pins(4)
    pin = add(pins, 1)
    assert pins.find(pin.number + 1) is None
    pins.remove(pin)
    assert pins.find(pin.number) is None


def test_a_beginning_that_two_pins_share_counts_once() -> None:
    pins = Pins(4)
    add(pins, 1, 2, 3)
    add(pins, 1, 2, 4)
    assert pins.num_blocks == 4
    assert [pins.held(block) for block in (1, 2, 3, 4, 5)] == [2, 2, 1, 1, 0]


def test_the_budget_lacks_only_the_blocks_that_are_not_pinned_yet() -> None:
    pins = Pins(4)
    assert [pins.missing(blocks) for blocks in ([], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6])] == [0, 0, 2]
    add(pins, 1, 2, 3)
    assert [pins.missing(blocks) for blocks in ([1, 2, 3], [1, 2, 3, 4], [1, 2, 4, 5], [4, 5, 6])] == [0, 0, 1, 2]


def test_asking_about_a_block_does_not_pin_it() -> None:
    pins = Pins(1)
    pins.held(7)
    pins.missing([7])
    assert pins.num_blocks == 0
    assert pins.missing([8]) == 0


def test_a_block_stays_pinned_until_its_last_pin_goes() -> None:
    pins = Pins(4)
    one, other = add(pins, 1, 2), add(pins, 1, 3)
    pins.remove(one)
    assert (pins.num_blocks, pins.held(1), pins.held(2)) == (2, 1, 0)
    pins.remove(other)
    assert (pins.num_blocks, pins.held(1), len(pins)) == (0, 0, 0)


def test_the_same_again_lasts_longer_and_is_no_second_pin() -> None:
    pins = Pins(4)
    pin, other = add(pins, 1, 2, expires=3.0), add(pins, 1, expires=4.0)
    assert pins.renew([1, 2], 2.0) == pin
    renewed = pins.renew([1, 2], 5.0)
    assert renewed == dataclasses.replace(pin, expires=5.0)
    assert pins.find(pin.number) == renewed
    assert pins.listed() == [other, renewed]
    assert (pins.next_expiry, pins.held(1), pins.held(2)) == (4.0, 2, 1)
    assert pins.renew([1, 2, 3], 9.0) is None
    pins.remove(pin)
    assert pins.renew([1, 2], 9.0) is None


def test_pins_are_listed_in_the_order_in_which_they_expire() -> None:
    pins = Pins(4)
    late, soon, between = add(pins, 1, expires=9.0), add(pins, 2, expires=2.0), add(pins, 3, expires=5.0)
    assert pins.listed() == [soon, between, late]


def test_the_next_expiry_is_that_of_the_first_pin_listed() -> None:
    pins = Pins(4)
    late, soon = add(pins, 1, expires=9.0), add(pins, 2, expires=2.0)
    assert pins.next_expiry == 2.0
    add(pins, 3, expires=5.0)
    assert pins.next_expiry == 2.0
    pins.remove(soon)
    assert pins.next_expiry == 5.0
    pins.remove(late)
    assert pins.next_expiry == 5.0
    pins.remove(pins.listed()[0])
    assert pins.next_expiry == math.inf


def test_removing_a_pin_twice_is_our_bug() -> None:
    pins = Pins(4)
    pin = add(pins, 1)
    pins.remove(pin)
    with pytest.raises(KeyError):
        pins.remove(pin)
