"""Redis away or hanging changes no page: limits and small pictures are each process's own."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.core.cache import cache
from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.test import Client
from pytest_django.fixtures import Settings

from accounts.models import Organization
from geekhub.lib.outages import Breaker, Seldom
from images.drawing.limits import RedisLimiter
from images.gallery import thumbnails
from images.pixels.turns import ALONE
from tests.api.test_edits import photo
from tests.away import PROVING, Wire, ask, urls
from tests.away.conftest import People
from tests.images.test_limits import caller
from tests.lib import dead_port

pytestmark = pytest.mark.timeout(3600 if PROVING else 300)
# As long as it is left alone: who asks it less often than that has asked it once.
AWAY_SECONDS = 5


def cached_in(url: str) -> dict[str, Any]:
    """Return CACHES for this Redis."""
    row = {
        "BACKEND": "geekhub.lib.cache.SteadyRedisCache",
        "LOCATION": url,
        "OPTIONS": {"max_connections": 16},
    }
    return {"default": row, "thumbnails": {**row, "KEY_PREFIX": "thumbnail"}}


@pytest.fixture
def wire(redis_url: str) -> Iterator[Wire]:
    """A wire to Redis."""
    place = urlsplit(redis_url)
    assert place.hostname
    assert place.port
    with Wire(place.hostname, place.port) as relay:
        yield relay


def through(wire: Wire, redis_url: str) -> str:
    """Return the address of Redis at the other end of the wire."""
    return redis_url.replace(f":{urlsplit(redis_url).port}/", f":{wire.port}/")


def test_no_page_needs_redis(acme: Organization, people: People, settings: Settings) -> None:
    settings.CACHES = cached_in(f"redis://127.0.0.1:{dead_port()}/0")
    wrong = {}
    for path in urls(acme):
        if "/1/" in path and not PROVING:
            continue  # nothing is there, once for each of eleven lists
        for client in people.all() if PROVING else [people.for_whom(path)]:
            # Logins and the like are counted when a form is sent.
            counted = path.startswith(("/login", "/accounts/"))
            for method in ("GET", "POST") if PROVING or counted else ("GET",):
                answer = ask(client, method, path)
                if answer.status_code >= 500 and path != "/ready":
                    wrong[method, path] = answer.status_code
            if "logout" in path:
                people.log_in_again()
    assert wrong == {}
    assert people.anonymous.get("/ready").json()["checks"]["cache"] == "failed"


def test_small_pictures_are_made_and_kept_without_redis(settings: Settings, tmp_path: Path) -> None:
    settings.CACHES = cached_in(f"redis://127.0.0.1:{dead_port()}/0")
    place = {"location": tmp_path, "base_url": "http://pictures.test/"}
    local = {"BACKEND": "images.stores.local.LocalStorage", "OPTIONS": place}
    settings.STORAGES = {**settings.STORAGES, "images": local}
    storages["images"].save("a/b/0.png", ContentFile(photo(640, 480)))
    small = thumbnails.thumbnail(None, ALONE, "a/b/0.png")
    assert small.startswith(b"RIFF")
    storages["images"].delete("a/b/0.png")
    assert thumbnails.thumbnail(None, ALONE, "a/b/0.png") == small


def test_people_log_in_while_redis_hangs(
    acme: Organization,
    people: People,
    settings: Settings,
    wire: Wire,
    redis_url: str,
    caplog: Any,
) -> None:
    settings.CACHES = cached_in(through(wire, redis_url))
    settings.ACCOUNT_RATE_LIMITS = {"login_failed": "5/5m/key"}
    alice = people.users[0]
    alice.set_password("correct horse 7")
    alice.save()
    cache.set("known", 1)
    wire.hang()
    began = time.monotonic()
    right = {"login": alice.email, "password": "correct horse 7"}
    assert people.anonymous.post("/login", right)["location"] == "/dashboard"
    # What is counted against a guesser is counted by this process.
    tries = [
        Client().post("/login", {"login": "bob@acme.test", "password": "guess"}).content
        for _ in range(6)
    ]
    assert [b"Too many failed login attempts" in text for text in tries] == [False] * 5 + [True]
    assert cache.get("known") is None
    assert cache.get_or_set("known", 2) == 2
    assert 1 <= waits(caplog) <= 1 + (time.monotonic() - began) / AWAY_SECONDS
    wire.flow()


def waits(caplog: Any) -> int:
    """Return how many callers have waited for Redis: each writes a line."""
    return len([one for one in caplog.records if "Redis does not answer" in one.getMessage()])


def test_a_limit_waits_for_silence_once(wire: Wire, redis_url: str, caplog: Any) -> None:
    limiter, who = RedisLimiter(through(wire, redis_url)), caller(rpm=20)
    before = limiter.enter(who, "before")
    wire.hang()
    began = time.monotonic()
    places = [limiter.enter(who, f"ticket {number}") for number in range(10)]
    for place in [before, *places]:
        limiter.leave(place)
    assert [place.remaining for place in places] == list(range(19, 9, -1))
    assert 1 <= waits(caplog) <= 1 + (time.monotonic() - began) / AWAY_SECONDS
    wire.flow()


def test_redis_is_asked_again_by_one_caller_at_a_time() -> None:
    now = [100.0]
    breaker = Breaker(5, clock=lambda: now[0])
    assert breaker.lets_through()
    assert breaker.lets_through()
    breaker.failed()
    assert not breaker.lets_through()
    now[0] = 104.9
    assert not breaker.lets_through()
    now[0] = 105.0
    assert breaker.lets_through(), "one tries"
    assert not breaker.lets_through(), "the others wait for what it finds out"
    breaker.failed()
    now[0] = 109.9
    assert not breaker.lets_through()
    now[0] = 110.0
    assert breaker.lets_through()
    breaker.worked()
    assert breaker.lets_through()
    assert breaker.lets_through()


def test_a_line_a_second() -> None:
    now = [7.0]
    seldom = Seldom(1, clock=lambda: now[0])
    written = []
    for _ in range(30):
        written.append(seldom.passes())
        now[0] += 0.25
    assert written == [True, False, False, False] * 7 + [True, False]
