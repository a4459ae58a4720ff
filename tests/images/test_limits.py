"""The two limiters keep one contract, alone or for all hosts, in a crowd too."""

import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from images.drawing.limits import (
    KEYS_REMEMBERED,
    WINDOW_SECONDS,
    Admission,
    Caller,
    Limiter,
    MemoryLimiter,
    RateLimited,
    RedisLimiter,
)
from tests import services
from tests.lib import dead_port


@pytest.fixture(params=["memory", "redis", "redis that is away"])
def limiter(request: pytest.FixtureRequest) -> Limiter:
    match request.param:
        case "memory":
            return MemoryLimiter()
        case "redis":
            return RedisLimiter(request.getfixturevalue("redis_url"))
        case _:
            return RedisLimiter(f"redis://127.0.0.1:{dead_port()}/0")


def caller(*, rpm: int = 100, most: int = 100, lease: float = 60) -> Caller:
    return Caller(uuid.uuid4(), uuid.uuid4(), rpm, most, lease)


def refusal(limiter: Limiter, who: Caller) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        limiter.enter(who, "refused")
    return caught.value


def crowd[T](count: int, work: Callable[[int], T]) -> list[T]:
    """Run work(0) … work(count - 1) at once, with the threads changed as often as possible."""
    start = threading.Barrier(count)
    usual = sys.getswitchinterval()

    def run(number: int) -> T:
        start.wait(30)
        return work(number)

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(count) as threads:
            return list(threads.map(run, range(count)))
    finally:
        sys.setswitchinterval(usual)


def test_a_key_may_send_so_many_requests_a_minute(limiter: Limiter) -> None:
    who = caller(rpm=3)
    left = [limiter.enter(who, f"t{number}").remaining for number in range(3)]
    assert left == [2, 1, 0]
    error = refusal(limiter, who)
    assert (error.which, error.limit) == ("requests", 3)
    assert 55 < error.retry_after <= 60
    # Another key of the same organization has a minute of its own.
    assert limiter.enter(replace(who, key=uuid.uuid4()), "other").remaining == 2


def test_giving_a_place_back_gives_no_request_back(limiter: Limiter) -> None:
    who = caller(rpm=2)
    for ticket in ("a", "b"):
        limiter.leave(limiter.enter(who, ticket))
    assert refusal(limiter, who).which == "requests"


def test_an_organization_has_so_many_requests_in_flight_over_all_its_keys(
    limiter: Limiter,
) -> None:
    who = caller(most=2)
    first = limiter.enter(who, "a")
    limiter.enter(replace(who, key=uuid.uuid4()), "b")
    error = refusal(limiter, replace(who, key=uuid.uuid4()))
    assert (error.which, error.limit, error.retry_after) == ("in_flight", 2, 1.0)
    limiter.enter(caller(most=2), "stranger")
    limiter.leave(first)
    limiter.enter(who, "c")
    assert refusal(limiter, who).which == "in_flight"


def test_a_place_is_given_back_once(limiter: Limiter) -> None:
    who = caller(most=2)
    first = limiter.enter(who, "a")
    limiter.enter(who, "b")
    limiter.leave(first)
    limiter.leave(first)
    limiter.enter(who, "c")
    assert refusal(limiter, who).which == "in_flight"


def test_a_refused_request_takes_neither_a_place_nor_a_turn(limiter: Limiter) -> None:
    who = caller(rpm=2, most=1)
    first = limiter.enter(who, "a")
    for _ in range(3):
        assert refusal(limiter, who).which == "in_flight"
    limiter.leave(first)
    second = limiter.enter(who, "b")
    assert second.remaining == 0
    limiter.leave(second)
    # The minute is used up now, and that takes no place either.
    assert refusal(limiter, who).which == "requests"
    limiter.enter(replace(who, key=uuid.uuid4()), "c")


@pytest.mark.parametrize(
    ("limits", "which"), [({"rpm": 0}, "requests"), ({"most": 0}, "in_flight")]
)
def test_a_limit_of_nothing_refuses_everything(
    limiter: Limiter, limits: dict[str, int], which: str
) -> None:
    error = refusal(limiter, caller(**limits))
    assert (error.which, error.limit) == (which, 0)
    assert 0 < error.retry_after <= 60


def test_a_place_that_is_never_given_back_is_free_after_its_lease(limiter: Limiter) -> None:
    who = caller(most=1, lease=1, rpm=10_000)
    began = time.monotonic()
    limiter.enter(who, "lost")
    admission = None
    while admission is None and time.monotonic() < began + 60:
        try:
            admission = limiter.enter(replace(who, lease=60), "next")
        except RateLimited:
            time.sleep(0.01)
    assert admission is not None
    # Redis's clock is not ours.
    assert time.monotonic() - began >= 0.9
    assert refusal(limiter, who).which == "in_flight"


def test_a_lease_ends_to_the_moment() -> None:
    now = 0.0
    limiter = MemoryLimiter(clock=lambda: now)
    who = caller(most=1, lease=60)
    limiter.enter(who, "lost")
    now = 59.9
    assert refusal(limiter, who).which == "in_flight"
    now = 60.0
    limiter.enter(who, "next")
    assert refusal(limiter, who).which == "in_flight"


@pytest.mark.parametrize(
    ("limits", "which"), [({"most": 37}, "in_flight"), ({"rpm": 37, "most": 1000}, "requests")]
)
def test_of_a_crowd_exactly_as_many_are_let_in_as_there_is_room_for(
    limiter: Limiter, limits: dict[str, int], which: str
) -> None:
    who = caller(**{"rpm": 1000, **limits})

    def enter(number: int) -> Admission | str:
        try:
            return limiter.enter(who, f"t{number}")
        except RateLimited as error:
            return error.which

    answers = crowd(200, enter)
    let_in = [answer for answer in answers if isinstance(answer, Admission)]
    assert len(let_in) == 37
    assert answers.count(which) == 163
    remaining = sorted(one.remaining for one in let_in)
    assert remaining == list(range(who.rpm - 37, who.rpm))

    crowd(37, lambda number: limiter.leave(let_in[number]))
    if which == "in_flight":
        again = crowd(200, enter)
        assert sum(isinstance(answer, Admission) for answer in again) == 37


def test_hosts_count_together_through_redis(redis_url: str) -> None:
    hosts = [RedisLimiter(redis_url) for _ in range(3)]
    who = caller(rpm=5, most=4)
    admissions = [hosts[number % 3].enter(who, f"t{number}") for number in range(4)]
    assert [one.remaining for one in admissions] == [4, 3, 2, 1]
    assert {refusal(host, who).which for host in hosts} == {"in_flight"}
    # A place may be given back by any of them.
    hosts[2].leave(admissions[0])
    assert hosts[0].enter(who, "last").remaining == 0
    assert {refusal(host, who).which for host in hosts} == {"requests"}


def test_when_redis_goes_away_requests_are_still_limited(caplog: Any) -> None:
    who = caller(rpm=100, most=2)
    try:
        with services.redis() as url:
            limiter = RedisLimiter(url)
            early = limiter.enter(who, "early")
    except services.Unavailable as reason:
        pytest.skip(str(reason))
    began = time.monotonic()
    first = limiter.enter(who, "a")
    limiter.enter(who, "b")
    assert refusal(limiter, who).which == "in_flight"
    limiter.leave(early)
    assert refusal(limiter, who).which == "in_flight"
    limiter.leave(first)
    limiter.enter(who, "c")
    # Nobody waits for what is not there.
    assert time.monotonic() - began < 2
    assert "Redis does not answer" in caplog.text


def test_keys_that_are_quiet_are_forgotten_also_one_whose_last_request_was_refused() -> None:
    now = 0.0
    limiter = MemoryLimiter(clock=lambda: now)
    busy = caller(most=1, lease=1000)
    limiter.enter(busy, "runs on")
    now = WINDOW_SECONDS + 1
    assert refusal(limiter, busy).which == "in_flight"
    for number in range(KEYS_REMEMBERED + 1):
        limiter.enter(caller(), f"one of many {number}")
    now = 2 * (WINDOW_SECONDS + 1)
    assert limiter.enter(caller(), "after all of them").remaining == 99
    assert len(limiter._recent) == 1
