"""Pixels on the request path: one organization's make nobody else wait; free ones are bounded."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import storages

from accounts.keys import NewKey
from accounts.models import Organization
from billing.models import Hold
from images.drawing import gateway
from images.drawing.gateway import Gateway
from images.drawing.limits import Admission, Caller
from images.gallery import thumbnails
from images.models import Generation, Image
from images.pixels import turns as pixels
from images.pixels.turns import MAX_FREE_PIXELS, THREADS, Turns
from tests.api.checks import expect_books_agree, expect_error, stored_files
from tests.api.test_edits import edit
from tests.emulators.base import make_picture
from tests.emulators.fal import FalEmulator
from tests.emulators.openai import OpenAIEmulator
from tests.factories import KeyFactory
from tests.server import Api, AppServer

FLUX = "fal/flux-1.1-pro"
WAIT_SECONDS = 60


def running(app: AppServer) -> Gateway:
    found = app._application.gateway
    assert found is not None
    return found


@contextmanager
def busy(turns: Turns, times: int = 3 * THREADS) -> Iterator[None]:
    """Keep an organization's share of the threads, and its queue, busy until the block ends."""
    gate, begun = threading.Event(), threading.Semaphore(0)

    def block() -> None:
        begun.release()
        assert gate.wait(WAIT_SECONDS)

    work = [turns.begin(block) for _ in range(times)]
    for _ in range(1 if turns.free else THREADS // 2):
        assert begun.acquire(timeout=WAIT_SECONDS)
    try:
        yield
    finally:
        gate.set()
        for one in work:
            one.result(WAIT_SECONDS)


@pytest.mark.parametrize("free", [True, False])
def test_while_one_organization_s_pixels_never_end_others_draw(
    app: AppServer,
    acme: Organization,
    globex: Organization,
    connect: Callable[[str | None], Api],
    openai: OpenAIEmulator,
    fal: FalEmulator,
    free: bool,
) -> None:
    """Transcoded, uploaded, drawn by the sandbox and made small: all at once, in any order."""
    live = connect(KeyFactory(organization=globex).secret)
    test = connect(KeyFactory(organization=globex, sandbox=True).secret)
    name = f"{globex.pk}/picture.png"
    storages["images"].save(name, ContentFile(make_picture(900, 600, "png")))
    with busy(running(app).pixels.turns(acme.pk, free=free)):
        for client in (live, test):
            for answer in (
                client.draw(),
                client.draw(model=FLUX, n=2, output_format="webp"),
                client.draw(model=FLUX, output_format="png", stream=True),
                edit(client),
            ):
                assert answer.status_code == 200, answer.text
                assert '"error"' not in answer.text
        turns = gateway.turns_of(running(app), globex.pk)
        assert thumbnails.thumbnail(running(app), turns, name)
    assert Image.objects.filter(generation__organization=globex).count() == 10
    assert not Generation.objects.exclude(status="succeeded").exists()


def test_a_live_organization_draws_beside_its_own_sandbox(
    app: AppServer, acme: Organization, api: Api, fal: FalEmulator
) -> None:
    with busy(running(app).pixels.turns(acme.pk, free=True)):
        assert api.draw(model=FLUX, output_format="webp").status_code == 200


def test_whose_turn_it_is_waits_and_is_served(
    app: AppServer, acme: Organization, api: Api, fal: FalEmulator
) -> None:
    with ThreadPoolExecutor(1) as pool:
        turns = running(app).pixels.turns(acme.pk, free=False)
        with busy(turns):
            queue = turns.pool._waiting[turns]
            before = len(queue)
            waiting = pool.submit(api.draw, model=FLUX, output_format="webp")
            while len(queue) == before:
                assert not wait([waiting], 0.02).done
            assert stored_files() == []
        assert waiting.result(WAIT_SECONDS).status_code == 200
    expect_books_agree(images=1, cost_micro=Generation.objects.get().cost_micro)


# --- What is free has bounds --------------------------------------------------------------------


def test_a_sandbox_with_too_much_waiting_is_429_and_others_are_not(
    app: AppServer,
    acme: Organization,
    globex: Organization,
    sandbox: Api,
    api: Api,
    connect: Callable[[str | None], Api],
    openai: OpenAIEmulator,
) -> None:
    other = connect(KeyFactory(organization=globex, sandbox=True).secret)
    turns = running(app).pixels.turns(acme.pk, free=True)
    one = 1024 * 1024
    with turns.reserved(MAX_FREE_PIXELS - 2 * one):
        error = expect_error(
            sandbox.draw(n=3), "rate_limit_exceeded", says="sandbox is still generating"
        )
        assert Generation.objects.get(request_id=error["request_id"]).delivered == 0
        answer = sandbox.draw(n=3, stream=True)
        expect_error(answer, "rate_limit_exceeded")
        assert answer.headers["retry-after"] == "5"
        assert answer.headers["retry-after-ms"] == "5000"
        # An early view and the picture an edit starts from are work, too.
        answer = sandbox.draw(n=1, stream=True, partial_images=2)
        expect_error(answer, "rate_limit_exceeded")
        big = ("image", ("a.png", make_picture(1400, 1000, "png"), "image/png"))
        expect_error(edit(sandbox, big), "rate_limit_exceeded")
        assert stored_files() == []
        assert sandbox.draw(n=2).status_code == 200
        assert other.draw(n=3).status_code == 200
        assert api.draw(n=3).status_code == 200
    assert sandbox.draw(n=3).status_code == 200
    assert Hold.objects.count() == 1
    # What was refused opens no circuit and leaves nothing reserved.
    assert not running(app).pixels._reserved
    assert running(app).sandbox.circuit.state == "closed"


def test_a_sandbox_request_that_fails_or_is_given_up_leaves_nothing_reserved(
    app: AppServer, acme: Organization, sandbox: Api, settings: Any
) -> None:
    expect_error(sandbox.draw(prompt="sandbox:refuse=output"), "content_policy_violation")
    settings.REQUEST_DEADLINE_SECONDS = 2
    with busy(running(app).pixels.turns(acme.pk, free=True)):
        expect_error(sandbox.draw(n=3), "provider_unavailable")
        assert not running(app).pixels._reserved


def test_a_burst_of_large_sandbox_pictures_is_cut_short_at_once(
    app: AppServer, acme: Organization, sandbox: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of sixteen simultaneous requests as many run as fit; the others get a 429."""
    monkeypatch.setattr(pixels, "MAX_FREE_PIXELS", 5 * 2 * 1024 * 1024)
    with ThreadPoolExecutor(16) as pool:
        with busy(running(app).pixels.turns(acme.pk, free=True)):
            answers = [pool.submit(sandbox.draw, n=2, output_format="webp") for _ in range(16)]
            first = [
                one.result().status_code for one in islice(as_completed(answers, WAIT_SECONDS), 11)
            ]
        statuses = sorted(one.result(WAIT_SECONDS).status_code for one in answers)
    assert first == [429] * 11
    assert statuses == [200] * 5 + [429] * 11
    assert Image.objects.count() == 10


# --- Small views ----------------------------------------------------------------------------------


def test_a_small_view_whose_turn_does_not_come_is_busy(
    app: AppServer, acme: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thumbnails, "WAIT_SECONDS", 0.05)
    name = f"{acme.pk}/picture.png"
    storages["images"].save(name, ContentFile(make_picture(90, 60, "png")))
    turns = gateway.turns_of(running(app), acme.pk)
    assert turns == running(app).pixels.turns(acme.pk, free=True)
    with busy(turns), pytest.raises(thumbnails.Busy):
        thumbnails.thumbnail(running(app), turns, name)
    monkeypatch.setattr(thumbnails, "WAIT_SECONDS", WAIT_SECONDS)
    assert thumbnails.thumbnail(running(app), turns, name)
    with pytest.raises(FileNotFoundError):
        thumbnails.thumbnail(running(app), turns, f"{acme.pk}/none.png")


# --- Places in flight -----------------------------------------------------------------------------


class Hanging:
    """A limiter whose store takes no place back until it is let."""

    def __init__(self) -> None:
        self.gate, self.left = threading.Event(), threading.Semaphore(0)

    def enter(self, caller: Caller, ticket: str) -> Admission:
        return Admission(caller, ticket, 1)

    def leave(self, admission: Admission) -> None:
        assert self.gate.wait(WAIT_SECONDS)
        self.left.release()


def test_an_answer_does_not_wait_for_a_store_that_hangs_when_a_place_is_given_back(
    app: AppServer, acme: Organization, live_key: NewKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "LEAVE_SECONDS", 0.01)
    limiter = Hanging()
    caller = Caller(live_key.row.pk, acme.pk, rpm=1, max_in_flight=1, lease=1)

    async def main() -> None:
        own = replace(running(app), limiter=limiter, loop=asyncio.get_running_loop())
        with ExitStack() as stack:
            stack.callback(own.leaving.close)
            # Ten times as many as it has threads.
            for number in range(20):
                await own.leave(limiter.enter(caller, str(number)))
            assert not limiter.left.acquire(blocking=False)
            # Pixel work and uploads continue.
            assert await own.turns(live_key.row).run(lambda: 1) == 1
            limiter.gate.set()
            await own.drain(WAIT_SECONDS)

    asyncio.run(main())
    for _ in range(20):
        assert limiter.left.acquire(timeout=WAIT_SECONDS)
