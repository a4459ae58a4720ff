"""Money: what is held, charged and given back, and who is turned away before anything is drawn."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import accumulate

import httpx
import pytest
from pytest_django.fixtures import Settings

from accounts.keys import NewKey
from accounts.models import Organization
from billing.models import (
    BillingAccount,
    BudgetPeriod,
    Hold,
    HoldState,
    LedgerEntry,
    Period,
    scopes,
)
from billing.models.scopes import Holder
from billing.spending import budgets
from images.models import Generation, GenerationStatus, Image
from tests.api.checks import (
    expect_books_agree,
    expect_error,
    expect_nothing_charged,
    expect_nothing_happened,
)
from tests.emulators.base import Behaviour
from tests.emulators.openai import STREAM_FORMS, OpenAIEmulator
from tests.factories import KeyFactory, OrganizationFactory
from tests.server import Api, AppServer

GPT, DALLE = "openai/gpt-image-1", "openai/dall-e-3"
type Connect = Callable[[str | None], Api]


@contextmanager
def _shut(openai: OpenAIEmulator) -> Iterator[threading.Event]:
    """Let no call be answered until the gate is set; it is, when the block ends."""
    gate = threading.Event()
    openai.always(Behaviour(gate=gate))
    try:
        yield gate
    finally:
        gate.set()


def _account(organization: Organization) -> tuple[int, int, int]:
    account = BillingAccount.objects.get(organization=organization)
    return account.balance_micro, account.held_micro, account.spent_micro


def test_who_cannot_pay_gets_402_and_nobody_is_called(
    connect: Connect, openai: OpenAIEmulator
) -> None:
    poor = OrganizationFactory(bonus="0.37")
    client = connect(KeyFactory(organization=poor).secret)

    answer = client.draw(n=2)
    expect_error(answer, "insufficient_balance", says=("balance", "Recharge"))
    assert answer.headers["x-should-retry"] == "false"
    # The balance must cover the most expensive model of a list.
    expect_error(client.draw(model=[DALLE, GPT], n=2), "insufficient_balance")
    expect_nothing_happened(openai)
    assert client.draw().status_code == 200
    assert _account(poor) == (180_000, 0, 190_000)
    expect_error(client.draw(), "insufficient_balance")
    assert len(openai.calls) == 1
    expect_books_agree(images=1, cost_micro=190_000)


def test_the_last_cent_can_be_spent(connect: Connect) -> None:
    organization = OrganizationFactory(bonus="0.38")
    client = connect(KeyFactory(organization=organization).secret)

    assert client.draw(n=2).status_code == 200
    assert _account(organization) == (0, 0, 380_000)
    expect_error(client.draw(model=DALLE), "insufficient_balance")
    expect_books_agree(images=2, cost_micro=380_000)


def test_a_credit_limit_can_be_spent_below_zero_and_no_further(
    connect: Connect, openai: OpenAIEmulator
) -> None:
    organization = OrganizationFactory(bonus="0.19", credit_limit="0.20")
    client = connect(KeyFactory(organization=organization).secret)

    assert [client.draw().status_code for _ in range(3)] == [200, 200, 402]
    assert _account(organization) == (-190_000, 0, 380_000)
    assert len(openai.calls) == 2
    assert client.get("credits").json()["geekhub"]["balance_usd"] == "-0.19"
    expect_books_agree(images=2, cost_micro=380_000)


def test_what_was_not_delivered_is_not_charged(
    api: Api, acme: Organization, openai: OpenAIEmulator
) -> None:
    openai.queue(Behaviour(fewer=3))
    answer = api.draw(n=4)

    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == 1
    assert answer.headers["x-geekhub-cost-usd"] == "0.19"
    hold, entry = Hold.objects.get(), LedgerEntry.objects.get(kind="consumption")
    assert (hold.amount_micro, hold.quantity, hold.state) == (760_000, 4, HoldState.CAPTURED)
    assert (entry.amount_micro, entry.quantity) == (-190_000, 1)
    assert _account(acme) == (9_810_000, 0, 190_000)
    expect_books_agree(images=1, cost_micro=190_000)


def test_the_model_that_drew_is_the_one_that_is_charged(
    api: Api, acme: Organization, openai: OpenAIEmulator
) -> None:
    openai.queue(Behaviour(error="moderation_blocked"))
    answer = api.draw(model=[GPT, DALLE])

    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["model"] == body["geekhub"]["final_model"] == DALLE
    assert body["geekhub"]["requested"] == [GPT, DALLE]
    assert body["geekhub"]["attempts"] == [
        {"model": GPT, "error": "content_policy_violation"},
        {"model": DALLE, "error": None},
    ]
    assert Hold.objects.get().amount_micro == 190_000
    entry = LedgerEntry.objects.get(kind="consumption")
    assert (entry.sku, entry.amount_micro) == (DALLE, -40_000)
    expect_books_agree(images=1, cost_micro=40_000)


REFUSED, INVALID, GONE, DOWN = (
    "content_policy_violation",
    "invalid_request_error",
    "model_not_found",
    "provider_unavailable",
)
# Every error the provider knows: our code, our param, the stage, and how often it was called.
PROVIDER_ERRORS: dict[str, tuple[str, str | None, str | None, int]] = {
    "invalid_value": (INVALID, "size", None, 1),
    "unknown_parameter": (INVALID, "response_format", None, 1),
    "moderation_blocked": (REFUSED, None, "prompt", 1),
    "moderation_blocked_output": (REFUSED, None, "output", 1),
    "moderation_blocked_plain": (REFUSED, None, "provider", 1),
    "content_policy_violation": (REFUSED, None, "provider", 1),
    "content_policy_violation_user": (REFUSED, None, "provider", 1),
    "billing_hard_limit_reached": (DOWN, None, None, 1),
    "billing_hard_limit_reached_429": (DOWN, None, None, 1),
    "invalid_api_key": (DOWN, None, None, 1),
    "organization_not_verified": (DOWN, None, None, 1),
    "unsupported_country": (DOWN, None, None, 1),
    "model_not_found": (GONE, "model", None, 1),
    "model_retired": (GONE, "model", None, 1),
    "rate_limit_exceeded": (DOWN, None, None, 3),
    "insufficient_quota": (DOWN, None, None, 1),
    "credit_balance_exhausted": (DOWN, None, None, 1),
    "organization_spend_limit_exceeded": (DOWN, None, None, 1),
    "project_spend_limit_exceeded": (DOWN, None, None, 1),
    "billing_not_active": (DOWN, None, None, 1),
    "slow_down": (DOWN, None, None, 3),
    "server_error": (DOWN, None, None, 3),
    "server_is_overloaded": (DOWN, None, None, 3),
    "stream_server_error": (DOWN, None, None, 3),
    "stream_moderation_blocked": (REFUSED, None, "output", 1),
}
PRIVATE = ("quota", "billing", "organization", "org-test", "verif", "openai.com", "sk-", "country")


def test_a_provider_error_charges_nothing_and_tells_nothing_of_our_account(
    serve: Callable[[], AppServer],
    live_key: NewKey,
    openai: OpenAIEmulator,
    subtests: pytest.Subtests,
) -> None:
    # The other forms that an error may have within a stream are the adapter's to tell apart.
    forms = {name + form for name in PROVIDER_ERRORS for form in STREAM_FORMS}
    assert PROVIDER_ERRORS.keys() <= OpenAIEmulator.ERRORS.keys() <= forms
    server, failing = serve(), False
    for name, (code, param, stage, calls) in PROVIDER_ERRORS.items():
        # A fresh process, because a failing provider is left alone for a while.
        server, failing = serve() if failing else server, code == DOWN
        openai.reset()
        openai.always(Behaviour(error=name, retry_after=0.01))
        with subtests.test(name), _client(server, live_key) as client:
            answer = client.draw()
            error = expect_error(answer, code, param=param)
            assert error.get("stage") == stage
            # Our account there is at fault: nothing the client repeats will mend it.
            hopeless = "false" if code == DOWN and calls == 1 else None
            assert answer.headers.get("x-should-retry") == hopeless
            audit = client.get(f"generation?id={error['request_id']}")
            written = audit.json()["data"]["error"]
            assert written["code"] == code
            assert error["message"].startswith(written["message"])
            said = OpenAIEmulator.ERRORS[name].body
            assert isinstance(said, dict)
            for text in (answer.text + str(answer.headers), audit.text):
                assert said["error"]["message"] not in text
                assert openai.key not in text
                assert not [word for word in PRIVATE if word in text.lower()]
            assert len(openai.calls) == calls
            assert Hold.objects.get(request_id=error["request_id"]).state == HoldState.RELEASED
            expect_nothing_charged()


# The provider may have drawn and billed all of these: nobody should blindly repeat them.
LOST = {
    "the connection drops after the work": Behaviour(drop="after"),
    "the answer is cut": Behaviour(cut=True),
    "the answer is no JSON": Behaviour(bad_json=True),
    "the picture is no base64": Behaviour(bad_base64=True),
    "the picture is a page": Behaviour(picture="html"),
    "the picture is a bomb": Behaviour(picture="bomb"),
    "the picture breaks off": Behaviour(picture="half"),
    "no picture in the answer": Behaviour(fewer=1),
}


def test_an_answer_that_is_lost_is_not_asked_for_again(
    serve: Callable[[], AppServer],
    live_key: NewKey,
    openai: OpenAIEmulator,
    subtests: pytest.Subtests,
) -> None:
    for name, behaviour in LOST.items():
        server = serve()
        openai.reset()
        openai.always(behaviour)
        with subtests.test(name), _client(server, live_key) as client:
            answer = client.draw()
            expect_error(answer, DOWN)
            assert answer.headers["x-should-retry"] == "false"
            assert len(openai.calls) == 1
            expect_nothing_charged()


def test_a_provider_that_cannot_be_reached_may_be_asked_again(
    serve: Callable[[], AppServer], settings: Settings, live_key: NewKey
) -> None:
    settings.PROVIDERS = {
        **settings.PROVIDERS,
        "openai": {"key": "any", "base_url": "http://127.0.0.1:1/v1"},
    }
    with _client(serve(), live_key) as client:
        answer = client.draw()
    expect_error(answer, DOWN)
    assert "x-should-retry" not in answer.headers
    assert Generation.objects.get().status == GenerationStatus.FAILED
    expect_nothing_charged()


def test_a_provider_that_is_too_slow_is_given_up_before_the_deadline(
    serve: Callable[[], AppServer], settings: Settings, live_key: NewKey, openai: OpenAIEmulator
) -> None:
    settings.REQUEST_DEADLINE_SECONDS = 3
    with _client(serve(), live_key) as client, _shut(openai):
        answer = client.draw()
        expect_error(answer, DOWN)
        assert answer.headers["x-should-retry"] == "false"
        assert answer.elapsed.total_seconds() < 20
    assert len(openai.calls) == 1
    expect_nothing_charged()


def test_a_store_that_cannot_keep_charges_nothing(
    api: Api, openai: OpenAIEmulator, settings: Settings
) -> None:
    # A file is where the folder should be.
    (settings.DATA_DIR / "images").write_text("in the way")
    answer = api.draw(n=2)

    expect_error(answer, "service_unavailable", says="Nothing was charged")
    assert answer.headers["x-should-retry"] == "false"
    assert len(openai.calls) == 1
    (settings.DATA_DIR / "images").unlink()
    assert Hold.objects.get().state == HoldState.RELEASED
    assert Generation.objects.get().error_code == "service_unavailable"
    expect_nothing_charged()


def test_a_failing_provider_is_left_alone_after_five_failures(
    api: Api, openai: OpenAIEmulator
) -> None:
    openai.always(Behaviour(drop="after"))
    for _ in range(5):
        expect_error(api.draw(), DOWN)
    calls = len(openai.calls)
    openai.always(Behaviour())

    expect_error(api.draw(), DOWN, param="model", says="paused for a moment")
    listed = api.draw(model=[GPT, DALLE])
    expect_error(listed, DOWN, kind="all_candidates_failed", says=(GPT, DALLE))
    assert len(openai.calls) == calls == 5
    assert Hold.objects.filter(state=HoldState.RELEASED).count() == 5
    expect_nothing_charged()


def test_a_key_s_budget_is_a_wall_for_this_key_only(
    api: Api, connect: Connect, acme: Organization, live_key: NewKey, openai: OpenAIEmulator
) -> None:
    budgets.set_budget(live_key.row, 400_000, Period.DAY)
    openai.queue(Behaviour(error="moderation_blocked"))

    # A failed request gives the budget back, like the balance.
    expect_error(api.draw(n=2), REFUSED)
    assert api.draw(n=2).status_code == 200
    answer = api.draw()
    expect_error(answer, "guardrail_blocked", says="budget for this day")
    assert answer.headers["x-should-retry"] == "false"
    assert len(openai.calls) == 2
    period = BudgetPeriod.objects.get()
    assert (period.spent_micro, period.held_micro) == (380_000, 0)
    assert _account(acme) == (9_620_000, 0, 380_000)
    shown = api.get("credits").json()["geekhub"]["key"]
    assert shown["spent_usd"] == shown["budget"]["spent_usd"] == "0.38"
    assert (shown["budget"]["limit_usd"], shown["budget"]["held_usd"]) == ("0.40", "0.00")
    assert connect(KeyFactory(organization=acme).secret).draw().status_code == 200
    expect_books_agree(images=3, cost_micro=570_000)


def test_the_organization_s_budget_is_a_wall_for_every_key(
    api: Api, connect: Connect, acme: Organization, globex: Organization, openai: OpenAIEmulator
) -> None:
    budget = budgets.set_for(acme.pk, Holder(scopes.ORGANIZATION), 400_000, Period.WEEK)
    other = connect(KeyFactory(organization=acme).secret)
    openai.queue(Behaviour(error="moderation_blocked"))
    expect_error(api.draw(n=2), REFUSED)
    assert api.draw().status_code == other.draw().status_code == 200
    for client in (api, other):
        answer = client.draw()
        expect_error(
            answer,
            "guardrail_blocked",
            says=("The organization's budget for this week is used up.", "GET /v1/credits"),
        )
        assert answer.headers["x-should-retry"] == "false"
        (told,) = client.get("credits").json()["geekhub"]["key"]["budgets"]
        assert (told["scope"], told["spent_usd"], told["held_usd"]) == (
            "organization", "0.38", "0.00",
        )  # fmt: skip
        assert "organization" not in told
    # A cheaper one does not fit either; another organization's request does.
    expect_error(api.draw(model=DALLE), "guardrail_blocked")
    assert len(openai.calls) == 3
    row = BudgetPeriod.objects.get(budget=budget)
    assert (row.spent_micro, row.held_micro) == (380_000, 0)
    assert (row.spent_images, row.held_images) == (2, 0)
    assert connect(KeyFactory(organization=globex).secret).draw().status_code == 200
    expect_books_agree(images=3, cost_micro=570_000)


def test_a_tag_s_budget_is_a_wall_for_requests_that_have_it(
    api: Api, connect: Connect, acme: Organization, openai: OpenAIEmulator
) -> None:
    web = budgets.set_for(acme.pk, Holder(scopes.TAG, "web"), None, Period.DAY, limit_images=2)
    app = budgets.set_for(acme.pk, Holder(scopes.TAG, "app"), 380_000, Period.MONTH)
    tagged = connect(KeyFactory(organization=acme, tags=["web"]).secret)

    assert tagged.draw(tags=["app"]).status_code == 200
    assert api.draw(tags=["app", "ci"]).status_code == 200
    # Of two tags one is used up: nothing is held in the other's.
    page = "http://127.0.0.1:8000/dashboard/billing/budgets shows what is left."
    says = ("The budget of the tag app for this month is used up.", page)
    expect_error(api.draw(tags=["web", "app"]), "guardrail_blocked", says=says)
    assert api.draw(tags=["web"]).status_code == 200
    says = ("The budget of the tag web for this day is used up.", "GET /v1/credits shows")
    expect_error(tagged.draw(), "guardrail_blocked", says=says)
    assert len(openai.calls) == 3
    assert api.draw(tags=["ci"]).status_code == 200
    rows = {row.budget_id: row for row in BudgetPeriod.objects.all()}
    assert {pk: (row.spent_images, row.held_images) for pk, row in rows.items()} == {
        web.pk: (2, 0),
        app.pk: (2, 0),
    }
    # A key is told of the tags that all its requests have.
    (told,) = tagged.get("credits").json()["geekhub"]["key"]["budgets"]
    assert (told["scope"], told["tag"], told["limit_images"]) == ("tag", "web", 2)
    assert api.get("credits").json()["geekhub"]["key"]["budgets"] == []
    expect_books_agree(images=4, cost_micro=760_000)


@pytest.mark.parametrize("scope", ["organization", "tag"])
def test_of_two_requests_for_the_last_picture_one_is_drawn(
    connect: Connect, acme: Organization, openai: OpenAIEmulator, scope: str
) -> None:
    holder = Holder(scopes.SCOPES[scope], "web" if scope == "tag" else None)
    budget = budgets.set_for(acme.pk, holder, 380_000, Period.MONTH)
    clients = [connect(KeyFactory(organization=acme).secret) for _ in range(2)]
    assert clients[0].draw(tags=["web"]).status_code == 200
    with ThreadPoolExecutor(2) as pool, _shut(openai) as gate:
        futures = [pool.submit(client.draw, tags=["web"]) for client in clients]
        openai.wait_for_calls(2)
        # One is refused while the other is still being drawn.
        (refused,), _ = wait(futures, timeout=30, return_when="FIRST_COMPLETED")
        expect_error(refused.result(), "guardrail_blocked", says="for this month is used up.")
        assert len(openai.calls) == 2
        row = BudgetPeriod.objects.get(budget=budget)
        assert (row.spent_micro, row.held_micro) == (190_000, 190_000)
        gate.set()
        answers = [future.result(timeout=30) for future in futures]
    assert sorted(answer.status_code for answer in answers) == [200, 403]
    assert len(openai.calls) == 2
    row.refresh_from_db()
    assert (row.spent_micro, row.held_micro) == (380_000, 0)
    expect_books_agree(images=2, cost_micro=380_000)


def test_fifty_at_once_with_money_for_twenty(
    connect: Connect, app: AppServer, openai: OpenAIEmulator
) -> None:
    organization = OrganizationFactory(bonus="3.80")
    client = connect(KeyFactory(organization=organization).secret)
    with ThreadPoolExecutor(50) as pool, _shut(openai) as gate:
        futures = [pool.submit(client.draw) for _ in range(50)]
        openai.wait_for_calls(20)
        # The thirty that cannot pay are answered while the twenty are still being drawn.
        waiting = set(futures)
        while len(waiting) > 20:
            done, waiting = wait(waiting, timeout=30, return_when="FIRST_COMPLETED")
            assert {future.result().status_code for future in done} == {402}
        assert len(openai.calls) == 20
        assert _account(organization) == (3_800_000, 3_800_000, 0)
        gate.set()
        answers = [future.result(timeout=30) for future in futures]

    assert sorted(answer.status_code for answer in answers) == [200] * 20 + [402] * 30
    assert len(openai.calls) == 20
    assert len({row["url"] for a in answers if a.is_success for row in a.json()["data"]}) == 20
    assert Generation.objects.count() == Hold.objects.count() == 20
    assert _account(organization) == (0, 0, 3_800_000)
    movements = LedgerEntry.objects.order_by("pk").values_list("amount_micro", flat=True)
    assert min(accumulate(movements)) == 0
    expect_books_agree(images=20, cost_micro=3_800_000)
    credits = client.get("credits").json()
    assert credits["data"] == {"total_credits": 3.8, "total_usage": 3.8}
    assert credits["geekhub"]["spent_30_days_usd"] == "3.80"
    assert Image.objects.filter(generation__organization=organization).count() == 20


def test_a_key_that_asks_too_often_is_told_when_to_come_back(
    serve: Callable[[], AppServer],
    settings: Settings,
    acme: Organization,
    live_key: NewKey,
    openai: OpenAIEmulator,
) -> None:
    settings.RATE_LIMIT_RPM = 3
    server = serve()
    other = KeyFactory(organization=acme)
    with _client(server, live_key) as client, _client(server, other) as colleague:
        expect_error(client.draw(n=0), INVALID, param="n")
        assert client.get("models").status_code == 200
        for left in ("2", "1", "0"):
            answer = client.draw(model=DALLE)
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-ratelimit-limit-requests"] == "3"
            assert answer.headers["x-ratelimit-remaining-requests"] == left
        answer = client.draw()
        expect_error(answer, "rate_limit_exceeded", says="3 requests per minute")
        _expect_wait(answer, most=60)
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert answer.headers["x-ratelimit-reset-requests"] == f"{answer.headers['retry-after']}s"
        assert len(openai.calls) == 3
        assert Generation.objects.count() == Hold.objects.count() == 3
        assert client.get("credits").status_code == 200
        assert colleague.draw(model=DALLE).status_code == 200
    expect_books_agree(images=4, cost_micro=160_000)


def test_an_organization_may_have_its_own_limit(
    connect: Connect, acme: Organization, live_key: NewKey
) -> None:
    acme.rate_limit_rpm = 1
    acme.save()
    client = connect(live_key.secret)

    assert client.draw().headers["x-ratelimit-limit-requests"] == "1"
    expect_error(client.draw(), "rate_limit_exceeded", says="1 requests per minute")


def test_an_organization_may_have_so_many_requests_in_flight(
    serve: Callable[[], AppServer],
    settings: Settings,
    acme: Organization,
    globex: Organization,
    live_key: NewKey,
    openai: OpenAIEmulator,
) -> None:
    settings.MAX_IN_FLIGHT = 2
    server = serve()
    keys = [live_key, KeyFactory(organization=acme), KeyFactory(organization=globex)]
    with (
        _client(server, keys[0]) as first,
        _client(server, keys[1]) as second,
        _client(server, keys[2]) as stranger,
        ThreadPoolExecutor(3) as pool,
        _shut(openai) as gate,
    ):
        running = [pool.submit(client.draw) for client in (first, second, stranger)]
        openai.wait_for_calls(3)
        for client in (first, second):
            answer = client.draw()
            expect_error(answer, "rate_limit_exceeded", says="2 requests in flight")
            _expect_wait(answer, most=5)
        assert len(openai.calls) == Generation.objects.count() == Hold.objects.count() == 3
        gate.set()
        assert [future.result(timeout=30).status_code for future in running] == [200] * 3
        # Whatever became of a request, its place is free again.
        openai.always(Behaviour(error="moderation_blocked"))
        assert [first.draw().status_code for _ in range(3)] == [400] * 3
        openai.always(Behaviour(drop="after"))
        assert [first.draw().status_code for _ in range(3)] == [502] * 3
        openai.always(Behaviour())
        assert [second.draw().status_code for _ in range(3)] == [200] * 3
    expect_books_agree(images=6, cost_micro=6 * 190_000)


def _expect_wait(answer: httpx.Response, *, most: int) -> None:
    seconds = int(answer.headers["retry-after"])
    assert 1 <= seconds <= most
    assert answer.headers["retry-after-ms"] == str(seconds * 1000)
    # Waiting helps: the SDKs are left to do it.
    assert "x-should-retry" not in answer.headers


@contextmanager
def _client(server: AppServer, key: NewKey) -> Iterator[Api]:
    client = Api(server.origin, key.secret)
    try:
        yield client
    finally:
        client.http.close()
