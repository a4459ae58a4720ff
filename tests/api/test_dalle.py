"""DALL-E 3: one picture a call, behind a URL that the gateway must fetch and must not trust."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from pytest_django.fixtures import Settings

from accounts.keys import NewKey
from accounts.models import Organization
from billing.models import Hold, HoldState
from images.models import Generation, Image
from tests.api.checks import expect_books_agree, expect_error, expect_nothing_charged, stored_files
from tests.emulators.base import Behaviour
from tests.emulators.openai import OpenAIEmulator
from tests.server import Api, AppServer

DALLE = "openai/dall-e-3"
PRICE = 40_000


def test_four_pictures_are_four_calls_and_the_urls_are_ours(
    api: Api, acme: Organization, openai: OpenAIEmulator
) -> None:
    answer = api.draw(model=DALLE, n=4, size="1792x1024", quality="hd", style="natural")

    assert answer.status_code == 200, answer.text
    assert answer.headers["x-geekhub-cost-usd"] == "0.16"
    call = {
        "model": "dall-e-3",
        "prompt": "a red kite",
        "n": 1,
        "size": "1792x1024",
        "quality": "hd",
        "style": "natural",
        "response_format": "url",
    }
    assert [one.body for one in openai.calls] == [call] * 4
    assert len(openai.downloads) == len(set(openai.downloads)) == 4
    assert openai.leaks == []
    assert openai.origin not in answer.text
    rows = answer.json()["data"]
    folder = f"{acme.pk}/{Generation.objects.get().pk}"
    assert [row["url"].partition("generated-images/")[2] for row in rows] == [
        f"{folder}/{index}.png" for index in range(4)
    ]
    assert {(row["width"], row["height"]) for row in rows} == {(1792, 1024)}
    assert {row["revised_prompt"] for row in rows} == {"a red kite, in detail"}
    assert len({row["sha256"] for row in rows}) == 4
    assert len(stored_files()) == Image.objects.count() == 4
    expect_books_agree(images=4, cost_micro=4 * PRICE)


def test_eight_calls_are_made_side_by_side(api: Api, openai: OpenAIEmulator) -> None:
    gate = threading.Event()
    openai.always(Behaviour(gate=gate))
    with ThreadPoolExecutor(1) as pool:
        try:
            future = pool.submit(api.draw, model=DALLE, n=8)
            openai.wait_for_calls(8)
        finally:
            gate.set()
        assert future.result(30).status_code == 200
    assert openai.peak == len(openai.calls) == 8
    expect_books_agree(images=8, cost_micro=8 * PRICE)


# What a provider, or somebody in its place, may put behind the URL.
BAD_PICTURES = {
    "the picture is gone": Behaviour(picture="404"),
    "a page for the picture": Behaviour(picture="html"),
    "a URL inside our network": Behaviour(picture="inside"),
    "a redirect into our network": Behaviour(picture="redirect_inside"),
    "60,000 x 60,000 pixels in 100 bytes": Behaviour(picture="bomb"),
    "the first half of the picture": Behaviour(picture="half"),
    "a body without an end": Behaviour(picture="huge"),
}


def test_a_picture_that_cannot_be_fetched_is_a_502_and_free(
    serve: Callable[[], AppServer],
    live_key: NewKey,
    openai: OpenAIEmulator,
    subtests: pytest.Subtests,
) -> None:
    for name, behaviour in BAD_PICTURES.items():
        server = serve()
        openai.reset()
        openai.always(behaviour)
        client = Api(server.origin, live_key.secret)
        with subtests.test(name):
            answer = client.draw(model=DALLE, n=2)
            expect_error(answer, "provider_unavailable")
            # Drawn and billed to us: a blind repeat would draw two more.
            assert answer.headers["x-should-retry"] == "false"
            assert len(openai.calls) == 2
            assert len(openai.downloads) == (0 if behaviour.picture == "inside" else 2)
            assert openai.leaks == []
            assert "169.254" not in answer.text
            assert openai.origin not in answer.text
            expect_nothing_charged()
        client.http.close()


def test_a_picture_whose_pixels_are_broken_is_a_502_once_they_are_needed(
    api: Api, openai: OpenAIEmulator
) -> None:
    openai.always(Behaviour(picture="junk"))
    answer = api.draw(model=DALLE, output_format="webp")
    expect_error(answer, "provider_unavailable")
    assert answer.headers["x-should-retry"] == "false"
    assert stored_files() == []
    expect_nothing_charged()


def test_a_picture_that_never_comes_ends_with_the_deadline(
    serve: Callable[[], AppServer], settings: Settings, live_key: NewKey, openai: OpenAIEmulator
) -> None:
    settings.REQUEST_DEADLINE_SECONDS = 3
    client = Api(serve().origin, live_key.secret)
    openai.always(Behaviour(picture="hang"))
    answer = client.draw(model=DALLE)
    client.http.close()

    expect_error(answer, "provider_unavailable")
    assert answer.headers["x-should-retry"] == "false"
    assert answer.elapsed.total_seconds() < 20
    assert len(openai.calls) == len(openai.downloads) == 1
    expect_nothing_charged()


def test_those_that_came_before_the_deadline_are_delivered(
    serve: Callable[[], AppServer], settings: Settings, live_key: NewKey, openai: OpenAIEmulator
) -> None:
    settings.REQUEST_DEADLINE_SECONDS = 3
    client = Api(serve().origin, live_key.secret)
    openai.queue(Behaviour(picture="hang"))
    answer = client.draw(model=DALLE, n=3)
    client.http.close()

    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == 2
    expect_books_agree(images=2, cost_micro=2 * PRICE)


@pytest.mark.parametrize(
    ("behaviour", "filtered"),
    [
        (Behaviour(error="moderation_blocked"), 1),
        (Behaviour(error="invalid_value"), None),
        (Behaviour(drop="after"), None),
        (Behaviour(picture="404"), None),
    ],
    ids=["refused", "rejected", "lost", "not fetched"],
)
def test_one_of_four_fails_and_three_are_delivered_and_charged(
    api: Api, openai: OpenAIEmulator, behaviour: Behaviour, filtered: int | None
) -> None:
    openai.queue(Behaviour(), behaviour)
    answer = api.draw(model=DALLE, n=4)

    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert len(body["data"]) == 3
    assert body.get("filtered_count") == filtered
    assert [row["url"].rpartition("/")[2] for row in body["data"]] == ["0.png", "1.png", "2.png"]
    assert answer.headers["x-geekhub-cost-usd"] == "0.12"
    assert len(openai.calls) == 4
    hold = Hold.objects.get()
    assert (hold.state, hold.amount_micro) == (HoldState.CAPTURED, 4 * PRICE)
    expect_books_agree(images=3, cost_micro=3 * PRICE)


def test_a_call_that_fails_for_a_moment_is_made_again(api: Api, openai: OpenAIEmulator) -> None:
    openai.queue(Behaviour(error="server_is_overloaded", retry_after=0.01))
    answer = api.draw(model=DALLE, n=4)

    assert len(answer.json()["data"]) == 4, answer.text
    assert len(openai.calls) == 5
    expect_books_agree(images=4, cost_micro=4 * PRICE)


def test_all_four_failing_tells_the_most_telling_reason(api: Api, openai: OpenAIEmulator) -> None:
    openai.queue(Behaviour(drop="after"), Behaviour(error="moderation_blocked"))
    openai.always(Behaviour(drop="after"))
    error = expect_error(api.draw(model=DALLE, n=3), "content_policy_violation")

    assert error["stage"] == "prompt"
    assert len(openai.calls) == 3
    expect_nothing_charged()
