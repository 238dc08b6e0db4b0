"""Open requests are found by every name they have, and forgotten when they end."""

from __future__ import annotations

import pytest

from octavo.engine.messages import AddRequest, packed
from octavo.errors import TooManyRequestsError
from octavo.scheduler.sampling import SamplingParams
from octavo.server.keys import Identity
from octavo.server.lifecycle import Lifecycle
from octavo.server.limits import MAX_ENDED_REQUESTS
from octavo.server.open_requests import OpenRequests

ADA, GRACE, ADMIN = Identity("ada"), Identity("grace"), Identity(admin=True)


class Client:
    """Knows some requests as running; aborts them once."""

    def __init__(self, *running: str) -> None:
        self.running = set(running)

    def request_of(self, key: int) -> str | None:
        return str(key) if str(key) in self.running else None

    def abort(self, request_id: str) -> bool:
        known = request_id in self.running
        self.running.discard(request_id)
        return known


def request(id: str, tenant: str = "ada") -> AddRequest:
    return AddRequest(id, packed([1]), SamplingParams(), tenant=tenant)


def test_any_name_aborts_all_that_the_engine_runs_of_it() -> None:
    client = Client("1", "2", "3")
    open_requests = OpenRequests(client, Lifecycle())  # type: ignore[arg-type]
    with open_requests.entered([request("1"), request("2")], ["cmpl-1", "mine"]):
        assert not open_requests.abort("other", ADA)
        assert not open_requests.abort("mine", GRACE)
        assert open_requests.abort("mine", ADA)
        assert client.running == {"3"}
        assert not open_requests.abort("cmpl-1", ADMIN), "it does not run any more"


def test_a_key_is_told_by_the_name_that_a_client_knows() -> None:
    open_requests = OpenRequests(Client("1", "2", "3"), Lifecycle())  # type: ignore[arg-type]
    with open_requests.entered([request("1")], ["cmpl-1", "mine"]), open_requests.entered([request("2")], []):
        assert [open_requests.name_of(key) for key in (1, 2, 3, 4)] == ["cmpl-1", "2", "3", None]
    assert open_requests.name_of(1) == "cmpl-1"


def test_what_ended_is_forgotten_and_its_namesake_is_not() -> None:
    client = Client("1", "2")
    open_requests = OpenRequests(client, Lifecycle())  # type: ignore[arg-type]
    with open_requests.entered([request("1")], ["same"]):
        with pytest.raises(ValueError, match="x"), open_requests.entered([request("2", "grace")], ["same"]):
            raise ValueError("x")
        assert open_requests.abort("same", ADMIN)
        assert client.running == {"2"}
    assert not open_requests.abort("same", ADMIN)
    assert open_requests.listed(ADMIN) == []


def test_no_more_than_the_lifecycle_lets_be_open() -> None:
    open_requests = OpenRequests(Client(), Lifecycle(max_open=1))  # type: ignore[arg-type]
    with (
        open_requests.entered([request("1")], ["a"]),
        pytest.raises(TooManyRequestsError),
        open_requests.entered([request("2")], ["b"]),
    ):
        pass
    assert open_requests.listed(ADMIN) == []


def test_what_ended_is_found_by_the_same_names_until_too_many_others_have() -> None:
    now = 100.0
    open_requests = OpenRequests(Client(), Lifecycle(), clock=lambda: now)  # type: ignore[arg-type]
    with open_requests.entered([request("1"), request("2")], ["cmpl-1", "mine"]):
        entry = open_requests.find("mine", ADA)
        assert entry is not None
        assert open_requests.listed(ADA) == [entry]
        assert open_requests.listed(GRACE) == []
        now = 103.0
        assert open_requests.age_of(entry) == 3
    now = 200.0
    assert open_requests.age_of(entry) == 3
    assert open_requests.listed(ADMIN) == []
    assert open_requests.find("mine", GRACE) is None
    for size in (1, MAX_ENDED_REQUESTS - 3):  # with the two above these are as many as are kept
        with open_requests.entered([request(f"{size}-{number}") for number in range(size)], [f"of {size}"]):
            pass
    assert open_requests.find("cmpl-1", ADA) is open_requests.find("mine", ADMIN) is entry
    assert open_requests.holder_of("2") is entry
    with open_requests.entered([request("one more")], ["last"]):
        pass
    assert open_requests.find("mine", ADA) is None
    assert open_requests.holder_of("1") is open_requests.holder_of("2") is None
    assert open_requests.find("of 1", ADA) is not None


def test_of_one_name_the_open_one_is_found_and_else_the_latest() -> None:
    open_requests = OpenRequests(Client(), Lifecycle())  # type: ignore[arg-type]
    with open_requests.entered([request("1")], ["same"]):
        with open_requests.entered([request("2")], ["same"]):
            pass
        open_one = open_requests.find("same", ADA)
        assert open_one is not None
        assert open_one.request_ids == ("1",)
    latest = open_requests.find("same", ADA)
    assert latest is not None
    assert latest.request_ids == ("1",)
