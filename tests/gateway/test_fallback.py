"""A request survives a bad provider, and a customer pays for what was delivered and no more."""

import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from django.utils import timezone
from pytest_django.fixtures import Settings

from accounts.keys import NewKey
from accounts.models import Organization
from billing.models import BillingAccount, Hold, HoldState
from images.models import Generation, GenerationStatus
from tests.api.checks import (
    expect_books_agree,
    expect_error,
    expect_nothing_charged,
    expect_nothing_happened,
)
from tests.emulators.base import Behaviour
from tests.emulators.fal import FalEmulator
from tests.emulators.google import GoogleEmulator
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.xai import XaiEmulator
from tests.factories import KeyFactory, OrganizationFactory
from tests.gateway import (
    DALLE,
    FLUX,
    GPT,
    GROK,
    IDEOGRAM,
    IMAGEN,
    PRICES,
    RECRAFT,
    Emulators,
    calls,
    circuits,
    drawn,
    expect_charged,
    expect_pictures,
    expect_sound_books,
    mend,
    provider_of,
    stop_clock,
)
from tests.server import Api, AppServer

DOWN, REFUSED = "provider_unavailable", "content_policy_violation"
ALL_CLOSED = {"openai": "closed", "google": "closed", "xai": "closed", "fal": "closed"}
LEFT_ALONE = "its provider is failing and is paused for a moment"
# An error that may be tried again at once; without it, tests would wait as production does.
AT_ONCE = 0.01

type Connect = Callable[[str | None], Api]
type Begin = Callable[..., tuple[AppServer, Api]]


def dead_url() -> str:
    """Return the address of a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def tried(answer: httpx.Response) -> list[tuple[str, str | None]]:
    """Return who was called and how that ended, from the answer of a list."""
    told = answer.json()["geekhub"] if answer.is_success else answer.json()["error"]
    return [(one["model"], one["error"]) for one in told["attempts"]]


def expect_left_alone(answer: httpx.Response, model: str) -> None:
    """Check that a single model's provider was not called, and that SDKs can see it."""
    expect_error(answer, DOWN, param="model", says=(model, LEFT_ALONE))
    assert answer.headers["x-should-retry"] == "false"


def skipped(answer: httpx.Response) -> dict[str, str]:
    """Return who was left out and why, from the answer of a list."""
    told = answer.json()["geekhub"] if answer.is_success else answer.json()["error"]
    return {one["model"]: one["reason"] for one in told["skipped"]}


# --- Falling through ------------------------------------------------------------------------

FAILURES = [
    ("openai", GPT, Behaviour(error="rate_limit_exceeded", retry_after=30), DOWN, 1),
    ("openai", GPT, Behaviour(error="slow_down", retry_after=AT_ONCE), DOWN, 3),
    ("openai", GPT, Behaviour(error="server_error", retry_after=AT_ONCE), DOWN, 3),
    ("openai", GPT, Behaviour(error="server_is_overloaded", retry_after=AT_ONCE), DOWN, 3),
    ("openai", GPT, Behaviour(drop="before"), DOWN, 1),
    ("openai", GPT, Behaviour(drop="after"), DOWN, 1),
    ("openai", GPT, Behaviour(cut=True), DOWN, 1),
    ("openai", GPT, Behaviour(bad_json=True), DOWN, 1),
    ("openai", GPT, Behaviour(bad_base64=True), DOWN, 1),
    ("openai", GPT, Behaviour(fewer=1), DOWN, 1),
    ("openai", GPT, Behaviour(error="moderation_blocked"), REFUSED, 1),
    ("openai", GPT, Behaviour(error="model_not_found"), "model_not_found", 1),
    ("openai", DALLE, Behaviour(picture="404"), DOWN, 1),
    ("openai", DALLE, Behaviour(picture="redirect_inside"), DOWN, 1),
    ("openai", DALLE, Behaviour(picture="inside"), DOWN, 1),
    ("openai", DALLE, Behaviour(picture="html"), DOWN, 1),
    ("openai", DALLE, Behaviour(picture="bomb"), DOWN, 1),
    ("google", IMAGEN, Behaviour(error="resource_exhausted"), DOWN, 1),
    ("google", IMAGEN, Behaviour(error="unavailable", retry_after=AT_ONCE), DOWN, 3),
    ("google", IMAGEN, Behaviour(error="refused_prompt"), REFUSED, 1),
    ("xai", GROK, Behaviour(error="rate_limited", retry_after=AT_ONCE), DOWN, 3),
    ("xai", GROK, Behaviour(error="internal", retry_after=AT_ONCE), DOWN, 3),
    ("xai", GROK, Behaviour(error="deprecated_model"), "model_not_found", 1),
    ("xai", GROK, Behaviour(error="moderation_blocked"), REFUSED, 1),
    ("fal", FLUX, Behaviour(error="rate_limited", retry_after=AT_ONCE), DOWN, 3),
    ("fal", FLUX, Behaviour(error="ingress_502", retry_after=AT_ONCE), DOWN, 3),
    ("fal", FLUX, Behaviour(error="generation_timeout"), DOWN, 1),
    ("fal", FLUX, Behaviour(error="internal_server_error_final"), DOWN, 1),
    ("fal", FLUX, Behaviour(error="content_policy_violation"), REFUSED, 1),
    ("fal", FLUX, Behaviour(drop="after"), DOWN, 1),
]
# Whom a list names after a provider, both of others.
NEXT = {
    "openai": (RECRAFT, IMAGEN),
    "google": (GPT, RECRAFT),
    "xai": (IMAGEN, GPT),
    "fal": (GROK, IMAGEN),
}


def test_every_failure_of_a_provider_falls_through_to_the_next(
    api: Api, app: AppServer, emulators: Emulators, subtests: pytest.Subtests
) -> None:
    for provider, model, behaviour, code, count in FAILURES:
        with subtests.test(f"{model} {behaviour.changed()} {behaviour.error}"):
            for name, one in emulators.items():
                one.reset()
                mend(app, name)
            emulators[provider].always(behaviour)
            second, third = NEXT[provider]

            answer = api.draw(model=[model, second, third])

            expect_pictures(answer, 1)
            assert answer.json()["model"] == second
            assert answer.json()["geekhub"] == {
                "final_model": second,
                "requested": [model, second, third],
                "attempts": [{"model": model, "error": code}, {"model": second, "error": None}],
                "skipped": [],
            }
            assert calls(emulators) == {provider: count, second.partition("/")[0]: 1}
            expect_charged(answer, second, 1)
    expect_sound_books()


def test_the_first_that_delivers_anything_ends_the_list(
    api: Api, openai: OpenAIEmulator, emulators: Emulators
) -> None:
    openai.queue(Behaviour(error="content_policy_violation"))

    answer = api.draw(model=[DALLE, FLUX], n=2)

    expect_pictures(answer, 1)
    assert (answer.json()["model"], answer.json()["filtered_count"]) == (DALLE, 1)
    assert tried(answer) == [(DALLE, None)]
    assert calls(emulators) == {"openai": 2}
    expect_charged(answer, DALLE, 1)


def test_a_provider_that_hangs_leaves_time_for_the_next(
    begin: Begin, settings: Settings, openai: OpenAIEmulator, emulators: Emulators
) -> None:
    settings.REQUEST_DEADLINE_SECONDS = 5
    _, api = begin()
    never = threading.Event()
    openai.always(Behaviour(gate=never))

    answer = api.draw(model=[GPT, IMAGEN])

    never.set()
    expect_pictures(answer, 1)
    assert tried(answer) == [(GPT, DOWN), (IMAGEN, None)]
    assert calls(emulators) == {"openai": 1, "google": 1}
    expect_charged(answer, IMAGEN, 1)


def test_a_read_timeout_is_never_tried_again_but_falls_through(
    api: Api, app: AppServer, openai: OpenAIEmulator, emulators: Emulators
) -> None:
    provider_of(app, "openai").http.timeout = httpx.Timeout(20, read=0.2)
    never = threading.Event()
    openai.always(Behaviour(gate=never))

    alone = api.draw(model=GPT)
    listed = api.draw(model=[GPT, IMAGEN])

    never.set()
    expect_error(alone, DOWN)
    # The picture may be drawn and billed: a blind repeat would draw another.
    assert alone.headers["x-should-retry"] == "false"
    assert tried(listed) == [(GPT, DOWN), (IMAGEN, None)]
    assert calls(emulators) == {"openai": 2, "google": 1}
    expect_books_agree(1, PRICES[IMAGEN])


def test_all_failed_is_one_502_that_tells_every_attempt(
    api: Api, xai: XaiEmulator, fal: FalEmulator, emulators: Emulators
) -> None:
    xai.always(Behaviour(error="internal", retry_after=AT_ONCE))
    fal.always(Behaviour(error="generation_timeout"))

    answer = api.draw(model=[GPT, RECRAFT, GROK, DALLE, FLUX], size="1024x768", n=2)

    error = expect_error(answer, DOWN, kind="all_candidates_failed")
    assert tried(answer) == [(GROK, DOWN), (FLUX, DOWN)]
    assert skipped(answer).keys() == {GPT, RECRAFT, DALLE}
    assert all("does not support 1024x768" in why for why in skipped(answer).values())
    assert "x-should-retry" not in answer.headers
    row = Generation.objects.get(request_id=error["request_id"])
    assert (row.status, row.error_code, row.cost_micro) == ("failed", DOWN, 0)
    assert [one["model"] for one in row.attempts] == [GROK, FLUX]
    assert calls(emulators) == {"xai": 3, "fal": 1}
    expect_nothing_charged()


def test_all_refused_is_one_502_too_because_a_list_was_asked(
    api: Api, openai: OpenAIEmulator, google: GoogleEmulator
) -> None:
    openai.always(Behaviour(error="moderation_blocked"))
    google.always(Behaviour(error="refused_prompt"))

    answer = api.draw(model=[GPT, IMAGEN])

    expect_error(answer, DOWN, kind="all_candidates_failed")
    assert tried(answer) == [(GPT, REFUSED), (IMAGEN, REFUSED)]
    assert answer.headers["x-should-retry"] == "false"  # they would refuse again
    expect_nothing_charged()


def test_what_may_have_been_charged_to_us_tells_sdks_not_to_repeat(
    api: Api, openai: OpenAIEmulator, google: GoogleEmulator
) -> None:
    openai.always(Behaviour(drop="after"))
    google.always(Behaviour(error="unavailable", retry_after=AT_ONCE))

    answer = api.draw(model=[GPT, IMAGEN])

    expect_error(answer, DOWN, kind="all_candidates_failed")
    assert answer.headers["x-should-retry"] == "false"
    expect_nothing_charged()


# --- What is the caller's own, and who is left out ------------------------------------------


def test_the_caller_s_own_errors_never_fall_through(
    api: Api,
    connect: Connect,
    openai: OpenAIEmulator,
    emulators: Emulators,
    subtests: pytest.Subtests,
) -> None:
    poor = connect(KeyFactory(organization=OrganizationFactory(bonus="0")).secret)
    few = connect(KeyFactory(organization=OrganizationFactory(), allowed_models=[IDEOGRAM]).secret)
    stranger = connect("ghub_sk_live_" + "x" * 32)
    both = [GPT, IMAGEN]
    cases: list[tuple[str, Api, dict[str, Any], str, str | None]] = [
        ("unknown model", api, {"model": ["no/model", GPT]}, "model_not_found", "model"),
        ("unknown later", api, {"model": [GPT, "no/model"]}, "model_not_found", "model"),
        ("bad n", api, {"model": both, "n": 9}, "invalid_request_error", "n"),
        ("no prompt", api, {"model": both, "prompt": ""}, "invalid_request_error", "prompt"),
        ("unknown field", api, {"model": both, "siez": 1}, "invalid_request_error", "siez"),
        ("named twice", api, {"model": [GPT, GPT]}, "invalid_request_error", "model"),
        ("no size", api, {"model": both, "size": "3x3"}, "invalid_request_error", "size"),
        ("too dear", api, {"model": both, "max_cost": 0.03}, "invalid_request_error", "max_cost"),
        ("bad key", stranger, {"model": both}, "invalid_api_key", None),
        ("no money", poor, {"model": both}, "insufficient_balance", None),
        ("not allowed", few, {"model": both}, "invalid_request_error", "model"),
        ("not allowed", few, {"model": GPT}, "guardrail_blocked", "model"),
        ("auto is alone", api, {"model": ["auto", GPT]}, "invalid_request_error", "model"),
        (
            "routing of one",
            api,
            {"model": GPT, "routing": {"on_refusal": "stop"}},
            "invalid_request_error",
            "routing",
        ),
        (
            "candidates of a list",
            api,
            {"model": both, "routing": {"candidates": [GPT]}},
            "invalid_request_error",
            "routing",
        ),
    ]
    for name, client, body, code, param in cases:
        with subtests.test(name):
            expect_error(client.draw(**body), code, param=param)
            expect_nothing_happened(openai)
    assert calls(emulators) == {}


def test_who_cannot_do_it_is_left_out_with_a_reason(
    begin: Begin, umbrella: Organization, settings: Settings, emulators: Emulators
) -> None:
    settings.PROVIDERS = {**settings.PROVIDERS, "xai": {"key": "", "base_url": "http://unused"}}
    _, api = begin(
        KeyFactory(organization=umbrella, allowed_models=[GPT, IMAGEN, GROK, FLUX, RECRAFT])
    )

    answer = api.draw(
        model=[IDEOGRAM, GROK, GPT, RECRAFT, FLUX],
        size="1024x1024",
        prompt="kite " * 210,
        max_cost=0.30,
        n=2,
    )

    expect_pictures(answer, 2)
    assert skipped(answer) == {
        IDEOGRAM: f"This API key cannot use {IDEOGRAM}.",
        GROK: "its provider is not configured",
        GPT: f"2 images of {GPT} cost 0.38 USD, more than max_cost 0.30.",
        RECRAFT: f"The prompt has 1050 characters; {RECRAFT} takes at most 1000.",
    }
    assert tried(answer) == [(FLUX, None)]
    assert calls(emulators) == {"fal": 1}
    expect_charged(answer, FLUX, 2)


def test_strict_leaves_out_whoever_would_adjust(api: Api, emulators: Emulators) -> None:
    answer = api.draw(model=[GPT, IMAGEN, FLUX], seed=7, strict=True)

    expect_pictures(answer, 1)
    assert skipped(answer) == {
        GPT: f"strict: {GPT} does not support seed.",
        IMAGEN: f"strict: {IMAGEN} does not support seed.",
    }
    assert calls(emulators) == {"fal": 1}
    assert "adjusted" not in answer.json()


# --- Money ----------------------------------------------------------------------------------


def test_the_hold_covers_the_dearest_and_the_one_that_answers_is_billed(
    api: Api, umbrella: Organization, fal: FalEmulator
) -> None:
    gate = threading.Event()
    fal.always(Behaviour(gate=gate))
    with ThreadPoolExecutor(1) as threads:
        drawing = threads.submit(api.draw, model=[FLUX, GPT, GROK], n=3)
        fal.wait_for_calls(1)
        hold = Hold.objects.get()
        account = BillingAccount.objects.get(organization=umbrella)
        gate.set()
        answer = drawing.result()

    assert (hold.state, hold.amount_micro) == (HoldState.HELD, 3 * PRICES[GPT])
    assert (account.held_micro, account.balance_micro) == (3 * PRICES[GPT], 1_000_000_000)
    expect_pictures(answer, 3)
    expect_charged(answer, FLUX, 3)
    expect_books_agree(3, 3 * PRICES[FLUX])


def test_who_can_pay_for_the_cheap_only_is_refused_before_any_call(
    connect: Connect, emulators: Emulators
) -> None:
    api = connect(KeyFactory(organization=OrganizationFactory(bonus="0.10")).secret)

    answer = api.draw(model=[FLUX, GPT])

    expect_error(answer, "insufficient_balance")
    assert calls(emulators) == {}


# --- Refusals in a list ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "of_key", "of_organization", "stops"),
    [
        (None, "", "next", False),
        ("stop", "", "next", True),
        (None, "stop", "next", True),
        (None, "", "stop", True),
        (None, "next", "stop", False),
        ("next", "stop", "stop", False),
        ("stop", "next", "next", True),
    ],
)
def test_a_refusal_ends_the_list_for_who_says_so(
    api: Api,
    umbrella: Organization,
    live_key: NewKey,
    openai: OpenAIEmulator,
    emulators: Emulators,
    asked: str | None,
    of_key: str,
    of_organization: str,
    stops: bool,
) -> None:
    live_key.row.on_refusal, umbrella.on_refusal = of_key, of_organization
    live_key.row.save()
    umbrella.save()
    openai.always(Behaviour(error="moderation_blocked"))

    answer = api.draw(model=[GPT, FLUX], routing={"on_refusal": asked} if asked else {})

    if stops:
        error = expect_error(answer, REFUSED)
        assert error["stage"] == "prompt"
        assert calls(emulators) == {"openai": 1}
        expect_nothing_charged()
    else:
        assert tried(answer) == [(GPT, REFUSED), (FLUX, None)]
        expect_charged(answer, FLUX, 1)


def test_stop_is_about_refusals_only(
    api: Api, openai: OpenAIEmulator, emulators: Emulators
) -> None:
    openai.always(Behaviour(error="rate_limit_exceeded", retry_after=30))

    answer = api.draw(model=[GPT, FLUX], routing={"on_refusal": "stop"})

    assert tried(answer) == [(GPT, DOWN), (FLUX, None)]
    assert calls(emulators) == {"openai": 1, "fal": 1}


# --- auto -----------------------------------------------------------------------------------


def history(key: NewKey, model: str, *draws_ms: int) -> None:
    """Write down that a model took so long to draw, just now."""
    Generation.objects.bulk_create(
        Generation(
            request_id=f"req_{uuid.uuid4().hex[:24]}",
            organization_id=key.row.organization_id,
            api_key=key.row,
            sandbox=False,
            owner=uuid.uuid4(),
            status=GenerationStatus.SUCCEEDED,
            requested=[model],
            parameters={},
            n=1,
            fingerprint="0" * 64,
            model=model,
            provider=model.partition("/")[0],
            delivered=1,
            deadline_at=timezone.now(),
            finished_at=timezone.now(),
            draw_ms=draw_ms,
            latency_ms=99_000,
        )
        for draw_ms in draws_ms
    )


@pytest.mark.parametrize(
    ("strategy", "order"),
    [
        (None, [DALLE, IDEOGRAM, GPT]),
        ("cheapest", [DALLE, IDEOGRAM, GPT]),
        ("fastest", [GPT, IDEOGRAM, DALLE]),
        # 60 % of price / 0.19 and 40 % of seconds / 20: 0.27, 0.53, 0.61
        ("balanced", [IDEOGRAM, DALLE, GPT]),
    ],
)
def test_auto_orders_its_candidates_by_the_strategy(
    api: Api,
    live_key: NewKey,
    openai: OpenAIEmulator,
    fal: FalEmulator,
    emulators: Emulators,
    strategy: str | None,
    order: list[str],
) -> None:
    # Medians of 20, 1 and 0.5 seconds; the means would differ.
    history(live_key, DALLE, 20_000, 20_000, 100)
    history(live_key, IDEOGRAM, 1_000, 1_000, 60_000)
    history(live_key, GPT, 500, 500, 90_000)
    openai.always(Behaviour(error="moderation_blocked"))
    fal.always(Behaviour(refuse=1))
    routing: dict[str, Any] = {"candidates": [IDEOGRAM, GPT, DALLE]}

    answer = api.draw(model="auto", routing=routing | ({"strategy": strategy} if strategy else {}))

    expect_error(answer, DOWN, kind="all_candidates_failed")
    assert tried(answer) == [(model, REFUSED) for model in order]
    assert calls(emulators) == {"openai": 2, "fal": 1}


@pytest.mark.parametrize("strategy", ["fastest", "balanced"])
def test_without_history_auto_is_cheapest(api: Api, emulators: Emulators, strategy: str) -> None:
    answer = api.draw(model="auto", routing={"strategy": strategy, "candidates": [GPT, GROK, FLUX]})

    assert tried(answer) == [(FLUX, None)]
    assert calls(emulators) == {"fal": 1}
    expect_charged(answer, FLUX, 1)


def test_a_bare_auto_may_use_every_model_and_takes_the_cheapest(
    api: Api, emulators: Emulators
) -> None:
    answer = api.draw(model="auto")

    expect_pictures(answer, 1)
    assert answer.json()["geekhub"]["requested"] == ["auto"]
    assert answer.json()["geekhub"]["final_model"] == "xai/grok-imagine-image"
    assert answer.headers["x-geekhub-cost-usd"] == "0.025"
    assert calls(emulators) == {"xai": 1}
    expect_books_agree(1, 25_000)


def test_auto_leaves_out_who_cannot_draw_the_size(api: Api, emulators: Emulators) -> None:
    answer = api.draw(
        model="auto",
        size="3136x1344",
        routing={"candidates": [GPT, FLUX, "fal/flux-1.1-pro-ultra"]},
    )

    assert answer.json()["model"] == "fal/flux-1.1-pro-ultra"
    assert skipped(answer).keys() == {GPT, FLUX}
    assert calls(emulators) == {"fal": 1}


# --- Retries --------------------------------------------------------------------------------


def test_a_retry_waits_as_long_as_the_provider_says(api: Api, emulators: Emulators) -> None:
    for name, model, error in (
        ("openai", GPT, "rate_limit_exceeded"),
        ("google", IMAGEN, "resource_exhausted"),
        ("xai", GROK, "rate_limited"),
        ("fal", FLUX, "rate_limited"),
    ):
        emulators[name].queue(*[Behaviour(error=error, retry_after=0.4)] * 2)
        began = time.monotonic()

        answer = api.draw(model=model)

        assert time.monotonic() - began >= 0.8
        expect_charged(answer, model, 1)
        assert len(emulators[name].calls) == 3
        assert len(emulators[name].pictures) == 1


@pytest.mark.parametrize(
    ("deadline", "wait", "count"),
    [
        (60, 21.0, 1),  # longer than anybody should wait
        (20, 10.0, 1),  # leaves less than half of what is left to draw in
        (20, 0.1, 3),
    ],
)
def test_a_retry_that_does_not_fit_is_not_made(
    begin: Begin,
    settings: Settings,
    openai: OpenAIEmulator,
    deadline: float,
    wait: float,
    count: int,
) -> None:
    settings.REQUEST_DEADLINE_SECONDS = deadline
    _, api = begin()
    openai.always(Behaviour(error="rate_limit_exceeded", retry_after=wait))
    began = time.monotonic()

    answer = api.draw(model=GPT)

    expect_error(answer, DOWN)
    assert len(openai.calls) == count
    assert time.monotonic() - began < 10
    expect_nothing_charged()


@pytest.mark.parametrize("n", [1, 3, 8])
def test_a_request_puts_up_with_three_failures_however_many_pictures_it_asks_for(
    api: Api, app: AppServer, openai: OpenAIEmulator, n: int
) -> None:
    openai.always(Behaviour(error="server_is_overloaded", retry_after=0.3 if n > 1 else AT_ONCE))
    # On a busy machine the first three take longer than half a second.
    provider_of(app, "openai").head_start = 60

    expect_error(api.draw(model=DALLE, n=n), DOWN)

    assert len(openai.calls) == 3
    assert circuits(app) == ALL_CLOSED
    expect_nothing_charged()


# --- The circuit ----------------------------------------------------------------------------


def test_a_provider_that_answers_500_costs_three_calls_a_request_and_then_none(
    api: Api, app: AppServer, openai: OpenAIEmulator
) -> None:
    openai.always(Behaviour(error="server_error", retry_after=AT_ONCE))
    stop_clock(app, "openai")
    assert circuits(app) == ALL_CLOSED
    told = []

    for _ in range(2):
        before = len(openai.calls)
        expect_error(api.draw(model=GPT), DOWN)
        told.append(len(openai.calls) - before)
    for n in (1, 8):
        expect_left_alone(api.draw(model=GPT, n=n), GPT)
        expect_left_alone(api.draw(model=DALLE, n=n), DALLE)

    assert told == [3, 2]
    assert len(openai.calls) == 5
    assert circuits(app) == ALL_CLOSED | {"openai": "open"}
    expect_nothing_charged()


@pytest.mark.parametrize("name", ["openai", "google", "xai", "fal"])
def test_a_provider_that_is_not_there_costs_three_calls_and_then_none(
    begin: Begin, settings: Settings, emulators: Emulators, name: str
) -> None:
    url = dead_url()
    gone = {"key": "any", "base_url": url, "queue_base_url": url}
    settings.PROVIDERS = {**settings.PROVIDERS, name: gone}
    app, api = begin()
    circuit = stop_clock(app, name)
    model = {"openai": GPT, "google": IMAGEN, "xai": GROK, "fal": FLUX}[name]
    other = GPT if name == "fal" else RECRAFT
    told = []

    for _ in range(2):
        before = circuit.failures
        expect_error(api.draw(model=model), DOWN)
        told.append(circuit.failures - before)  # each of them was one call
    expect_left_alone(api.draw(model=model), model)

    assert told == [3, 2]
    assert circuits(app) == ALL_CLOSED | {name: "open"}
    answer = api.draw(model=[model, other])
    assert tried(answer) == [(other, None)]
    assert skipped(answer) == {model: LEFT_ALONE}
    assert circuit.failures == 5
    expect_books_agree(1, PRICES[other])
    assert calls(emulators) == {other.partition("/")[0]: 1}


def test_a_list_of_open_circuits_only_fails_without_a_call(
    api: Api, app: AppServer, openai: OpenAIEmulator
) -> None:
    openai.always(Behaviour(error="insufficient_quota"))
    expect_error(api.draw(model=GPT), DOWN)

    answer = api.draw(model=[GPT, DALLE])

    error = expect_error(answer, DOWN, kind="all_candidates_failed")
    assert error["message"] == (
        f"None of the models is available now. {GPT}: {LEFT_ALONE}. {DALLE}: {LEFT_ALONE}."
    )
    assert tried(answer) == []
    assert skipped(answer).keys() == {GPT, DALLE}
    assert len(openai.calls) == 1
    expect_nothing_charged()


def test_half_open_lets_one_call_through_and_its_outcome_decides(
    api: Api, app: AppServer, openai: OpenAIEmulator
) -> None:
    circuit = stop_clock(app, "openai")
    openai.always(Behaviour(error="server_error", retry_after=AT_ONCE))
    expect_error(api.draw(model=GPT), DOWN)
    expect_error(api.draw(model=GPT), DOWN)
    assert circuits(app)["openai"] == "open"
    circuit.pause = 0
    assert circuits(app)["openai"] == "half-open"

    # The one that is let through hangs: nobody else is, and it fails.
    gate = threading.Event()
    openai.reset()
    openai.always(Behaviour(error="server_error", gate=gate, retry_after=AT_ONCE))
    with ThreadPoolExecutor(1) as threads:
        probe = threads.submit(api.draw, model=GPT)
        openai.wait_for_calls(1)
        assert circuits(app)["openai"] == "open"
        expect_left_alone(api.draw(model=GPT), GPT)
        circuit.pause = 30
        gate.set()
        expect_error(probe.result(), DOWN)
    assert len(openai.calls) == 1
    assert circuits(app)["openai"] == "open"

    # The next one succeeds, and the provider is back.
    circuit.pause = 0
    openai.reset()
    expect_pictures(api.draw(model=GPT), 1)
    assert circuits(app) == ALL_CLOSED
    expect_pictures(api.draw(model=GPT, n=2), 2)
    assert len(openai.calls) == 2
    expect_books_agree(3, 3 * PRICES[GPT])


def test_one_organizations_failures_do_not_take_the_provider_from_another(
    api: Api, app: AppServer, connect: Connect, openai: OpenAIEmulator
) -> None:
    stop_clock(app, "openai")
    other = connect(KeyFactory(organization=OrganizationFactory(bonus="10")).secret)
    openai.always(Behaviour(error="server_error", retry_after=AT_ONCE))
    for _ in range(2):
        expect_error(api.draw(model=GPT), DOWN)
    expect_left_alone(api.draw(model=GPT), GPT)
    openai.reset()

    expect_pictures(other.draw(model=GPT), 1)

    assert circuits(app) == ALL_CLOSED
    expect_pictures(api.draw(model=GPT), 1)
    assert len(openai.calls) == 2
    expect_sound_books()


def test_a_refusal_is_no_failure_of_the_provider(
    api: Api, app: AppServer, openai: OpenAIEmulator
) -> None:
    openai.always(Behaviour(error="moderation_blocked"))

    for _ in range(7):
        expect_error(api.draw(model=GPT), REFUSED)

    assert circuits(app) == ALL_CLOSED
    assert len(openai.calls) == 7


ACCOUNT = [
    ("openai", GPT, "insufficient_quota", "quota"),
    ("openai", GPT, "credit_balance_exhausted", "balance"),
    ("openai", GPT, "organization_spend_limit_exceeded", "spend"),
    ("openai", GPT, "project_spend_limit_exceeded", "spend"),
    ("openai", GPT, "billing_hard_limit_reached", "Billing"),
    ("openai", GPT, "billing_hard_limit_reached_429", "Billing"),
    ("openai", GPT, "invalid_api_key", "API key"),
    ("openai", GPT, "organization_not_verified", "verified"),
    ("google", IMAGEN, "api_key_invalid", "API key"),
    ("google", IMAGEN, "permission_denied", "disabled"),
    ("google", IMAGEN, "failed_precondition", "location"),
    ("xai", GROK, "incorrect_api_key", "API key"),
    ("xai", GROK, "unauthenticated", "authorization"),
    ("xai", GROK, "no_credits", "credits"),
    ("xai", GROK, "no_credits_402", "credits"),
    ("xai", GROK, "permission_denied", "blocked"),
    ("fal", FLUX, "user_locked", "locked"),
    ("fal", FLUX, "user_locked_other", "locked"),
    ("fal", FLUX, "unauthorized", "Authentication"),
]


def test_trouble_with_our_account_opens_the_circuit_at_once_and_is_told_to_operators_only(
    api: Api,
    app: AppServer,
    emulators: Emulators,
    caplog: pytest.LogCaptureFixture,
    subtests: pytest.Subtests,
) -> None:
    for name, model, error, word in ACCOUNT:
        with subtests.test(f"{name} {error}"):
            for provider, one in emulators.items():
                one.reset()
                mend(app, provider)
            caplog.clear()
            emulators[name].always(Behaviour(error=error))

            first, second = api.draw(model=model), api.draw(model=model)

            assert expect_error(first, DOWN)["message"] == (
                "The provider did not deliver. Try again, or name another model as a fallback."
            )
            assert first.headers["x-should-retry"] == "false"
            expect_left_alone(second, model)
            for answer in (first, second):
                assert word.lower() not in answer.text.lower()
            assert len(emulators[name].calls) == 1
            assert circuits(app) == ALL_CLOSED | {name: "open"}
            errors = [one for one in caplog.records if one.levelno >= logging.ERROR]
            assert len(errors) == 1
            assert word in errors[0].getMessage()
            assert emulators[name].key not in caplog.text
            row = Generation.objects.latest("created_at")
            assert word.lower() not in row.error_message.lower()
    expect_nothing_charged()


@pytest.mark.parametrize("name", ["openai", "google", "xai", "fal"])
def test_a_wrong_key_of_ours_opens_the_circuit_at_once(
    begin: Begin,
    settings: Settings,
    emulators: Emulators,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    wrong = settings.PROVIDERS[name] | {"key": "sk-wrong-key"}
    settings.PROVIDERS = {**settings.PROVIDERS, name: wrong}
    app, api = begin()
    # Starting an application sets up logging again and removes our handler.
    logging.getLogger().addHandler(caplog.handler)
    model = {"openai": GPT, "google": IMAGEN, "xai": GROK, "fal": FLUX}[name]

    expect_error(api.draw(model=model), DOWN)
    expect_left_alone(api.draw(model=model), model)

    assert len(emulators[name].calls) == 1
    assert circuits(app)[name] == "open"
    assert [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert "sk-wrong-key" not in caplog.text
    assert drawn(emulators) == 0
    expect_nothing_charged()
