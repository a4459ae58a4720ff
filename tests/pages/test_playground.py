"""The playground works like the API: charged, limited, stored, and explained in plain words."""

import logging
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC
from typing import Any

import httpx
import pytest
from django.db import transaction
from django.test import Client
from django.utils import timezone
from pytest_django.fixtures import Settings

from accounts import keys
from accounts.keys import InvalidKey, KeyRefused, NewKey
from accounts.models import ApiKey, Organization, Role
from billing.models import EntryKind, Hold, HoldState, LedgerEntry, Period
from billing.spending import budgets, ledger
from billing.stripe import standing
from images.catalog.rows import CATALOG
from images.drawing.request import GenerationRequest
from images.models import Generation, GenerationStatus, Image
from images.pages.snippets import snippets
from tests.billing import race
from tests.emulators.base import Behaviour
from tests.emulators.fal import FalEmulator
from tests.emulators.openai import OpenAIEmulator
from tests.pages import log_in, member_of, owner_of
from tests.pages.visitor import CSRF, Visitor
from tests.server import Api, AppServer

FLUX, GPT = "fal/flux-1.1-pro", "openai/gpt-image-2"
PROMPT = "a red kite over the quiet sea"


@pytest.fixture
def visit(app: AppServer) -> Iterator[Callable[..., Visitor]]:
    """Make a visitor of a person."""
    made: list[Visitor] = []

    def make(user: Any) -> Visitor:
        made.append(Visitor(app, user))
        return made[-1]

    yield make
    for one in made:
        one.http.close()


@pytest.fixture
def alice(visit: Callable[..., Visitor], acme: Organization) -> Visitor:
    """Acme's owner."""
    return visit(owner_of(acme))


def draw(visitor: Visitor, model: str = FLUX, **changes: Any) -> httpx.Response:
    data = {
        "run": secrets.token_hex(16),
        "prompt": PROMPT,
        "models": model,
        "size": "auto",
        "n": "1",
        **changes,
    }
    return visitor.post("/dashboard/playground/draw", **data)


def request_id(answer: httpx.Response) -> str:
    found = re.search(r'id="(req_[0-9a-f]{24})"', answer.text)
    assert found, answer.text
    return found[1]


def test_it_draws_charges_and_tells(
    app: AppServer, alice: Visitor, acme: Organization, fal: FalEmulator
) -> None:
    started = draw(alice, n="2", seed="7", size="1536x1024")
    assert started.status_code == 200
    app.drain()
    row = Generation.objects.get()
    assert row.request_id == request_id(started)
    assert (row.status, row.delivered, row.cost_micro) == ("succeeded", 2, 80_000)
    assert row.parameters == {"listed": False, "n": 2, "size": "1536x1024", "seed": 7}
    assert row.prompt == PROMPT
    assert row.api_key.playground
    assert not row.sandbox
    entry = LedgerEntry.objects.get(organization=acme, kind="consumption")
    assert (entry.amount_micro, entry.quantity, entry.api_key) == (-80_000, 2, row.api_key)
    assert Hold.objects.get().state == HoldState.CAPTURED

    told = alice.get("/dashboard/playground/results", params={"id": row.request_id})
    assert 'data-state="succeeded"' in told.text
    assert "$0.08" in told.text
    assert told.text.count("<img ") == 2
    assert re.search(r'<img [^>]*width="\d+" height="\d+"', told.text)
    # A page that is loaded again shows it, and so does the gallery.
    assert row.request_id in alice.get("/dashboard/playground").text
    assert alice.get("/dashboard/gallery").text.count('class="tile"') == 2


def test_test_pictures_are_free_and_call_nobody(
    app: AppServer, alice: Visitor, acme: Organization, fal: FalEmulator
) -> None:
    draw(alice, sandbox="on")
    app.drain()
    row = Generation.objects.get()
    assert (row.sandbox, row.cost_micro, row.hold, row.delivered) == (True, 0, None, 1)
    assert fal.calls == []
    assert not LedgerEntry.objects.filter(kind="consumption").exists()


def test_what_is_sent_twice_draws_and_costs_once(
    app: AppServer, alice: Visitor, acme: Organization
) -> None:
    run = secrets.token_hex(16)
    first = draw(alice, run=run)
    again = draw(alice, run=run)
    app.drain()
    later = draw(alice, run=run)
    assert request_id(first) == request_id(again) == request_id(later)
    assert 'data-state="succeeded"' in later.text
    assert Generation.objects.count() == 1
    assert LedgerEntry.objects.filter(kind="consumption").count() == 1
    # Another prompt under the same run is not quietly the first one.
    other = draw(alice, run=run, prompt="something else")
    assert "This form was already sent." in other.text
    assert Generation.objects.count() == 1


def test_what_two_people_send_under_one_run_are_two(
    app: AppServer, visit: Callable[..., Visitor], acme: Organization
) -> None:
    run = secrets.token_hex(16)
    for _ in range(2):
        assert draw(visit(member_of(acme, Role.DEVELOPER)), run=run).status_code == 200
    app.drain()
    assert Generation.objects.count() == 2


def test_without_scripts_the_form_draws_all_and_shows_them(
    app: AppServer, alice: Visitor, acme: Organization
) -> None:
    form = {"run": "a" * 32, "prompt": PROMPT, "models": [FLUX, GPT], "size": "auto", "n": "1"}
    answer = alice.post("/dashboard/playground", **form)
    assert (answer.status_code, answer.headers["location"]) == (302, "/dashboard/playground")
    alice.post("/dashboard/playground", **form)
    app.drain()
    assert {row.model for row in Generation.objects.all()} == {FLUX, GPT}
    assert LedgerEntry.objects.filter(kind="consumption").count() == 2
    assert alice.get("/dashboard/playground").text.count("<article") == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": ""}, "This field is required."),
        ({"prompt": "x" * 4001}, "at most 4000 characters"),
        ({"prompt": "nul \0 byte"}, "Null characters"),
        ({"models": []}, "Choose at least one model."),
        ({"models": "no/such"}, "is not one of the available choices"),
        ({"models": list(CATALOG)[:10]}, "Choose up to 9 models."),
        ({"n": "9"}, "is not one of the available choices"),
        ({"size": "7x7"}, "is not one of the available choices"),
        ({"seed": "-1"}, "greater than or equal to 0"),
        ({"run": "x"}, "Enter a valid value."),
    ],
)
def test_a_form_that_cannot_be_is_refused(
    alice: Visitor, changes: dict[str, Any], words: str
) -> None:
    answer = draw(alice, **changes)
    assert answer.status_code == 422
    assert words in answer.text.replace("&#x27;", "'")
    assert not Generation.objects.exists()
    assert not ApiKey.objects.filter(playground=True).exists()


def test_no_balance_is_told_and_nothing_is_written(
    app: AppServer, alice: Visitor, acme: Organization, settings: Settings
) -> None:
    acme.max_in_flight = 1
    acme.save()
    ledger.balance(acme)  # 10 USD: enough for five times seven pictures of this model, not for six
    for _ in range(5):
        draw(alice, GPT, n="7")
        app.drain()
    answer = draw(alice, GPT, n="7")
    assert "Not enough balance." in answer.text
    assert 'data-state="refused"' in answer.text
    assert Generation.objects.count() == 5
    # The place in flight was given back: something cheaper is let in.
    assert 'data-state="running"' in draw(alice, FLUX).text
    app.drain()


def test_a_place_is_given_back_when_it_is_drawn_and_not_before(
    app: AppServer, alice: Visitor, acme: Organization, openai: OpenAIEmulator
) -> None:
    acme.max_in_flight = 1
    acme.save()
    gate = threading.Event()
    openai.always(Behaviour(gate=gate))
    try:
        assert 'data-state="running"' in draw(alice, GPT).text
        assert "Too many requests at once." in draw(alice, GPT).text
    finally:
        gate.set()
    app.drain()
    assert 'data-state="running"' in draw(alice, GPT).text
    app.drain()
    assert Generation.objects.count() == 2


def test_the_limit_of_requests_a_minute_counts_here_too(alice: Visitor, acme: Organization) -> None:
    acme.rate_limit_rpm = 1
    acme.save()
    assert 'data-state="running"' in draw(alice, sandbox="on").text
    answer = draw(alice, sandbox="on")
    assert "Too many requests at once." in answer.text
    assert Generation.objects.count() == 1


def test_a_budget_of_the_persons_key_counts(
    app: AppServer, alice: Visitor, acme: Organization
) -> None:
    with transaction.atomic():
        key = keys.playground(acme, owner_of(acme), sandbox=False)
        budgets.set_budget(key, 40_000, Period.DAY)
    draw(alice)
    app.drain()
    answer = draw(alice)
    assert "A limit does not allow it." in answer.text
    assert Generation.objects.get().cost_micro == 40_000


def test_a_refusal_of_the_provider_is_told_and_free(
    app: AppServer, alice: Visitor, acme: Organization
) -> None:
    draw(alice, prompt="sandbox:refuse", sandbox="on")
    app.drain()
    row = Generation.objects.get()
    told = alice.get("/dashboard/playground/results", params={"id": row.request_id}).text
    assert row.status == GenerationStatus.FAILED
    assert "The provider refused the prompt or the image." in told
    assert "Nothing was charged." in told


def test_a_paused_key_draws_nothing_and_can_be_resumed(alice: Visitor, acme: Organization) -> None:
    key = keys.playground(acme, owner_of(acme), sandbox=True)
    assert key.prefix not in alice.get("/dashboard/keys").text
    keys.pause(key, "It spent too much.")
    answer = draw(alice, sandbox="on")
    assert "A limit does not allow it." in answer.text
    assert "It spent too much." in answer.text
    assert not Generation.objects.exists()
    assert f"/dashboard/keys/{key.pk}/resume" in alice.get("/dashboard/keys").text
    keys.resume(key)
    assert 'data-state="running"' in draw(alice, sandbox="on").text


def test_each_person_has_one_key_and_nobody_its_secret(acme: Organization) -> None:
    alice, bob = owner_of(acme), member_of(acme, Role.DEVELOPER)
    made = race(6, lambda _: keys.playground(acme, alice, sandbox=False))
    assert len({key.pk for key in made if isinstance(key, ApiKey)}) == 1
    others = [
        keys.playground(acme, alice, sandbox=True),
        keys.playground(acme, bob, sandbox=False),
    ]
    assert ApiKey.objects.filter(playground=True).count() == 3
    for key in others:
        with pytest.raises(InvalidKey):
            keys.authenticate(key.prefix + "x" * (45 - len(key.prefix)))
    # A revoked one is not used again.
    keys.revoke(others[0])
    assert keys.playground(acme, alice, sandbox=True).pk != others[0].pk
    keys.pause(others[1], "why")
    with pytest.raises(KeyRefused, match="why"):
        keys.playground(acme, bob, sandbox=False)


def test_a_browser_that_leaves_at_once_loses_nothing(
    app: AppServer, alice: Visitor, acme: Organization, caplog: pytest.LogCaptureFixture
) -> None:
    form = {"run": "a" * 32, "prompt": PROMPT, "models": FLUX, "size": "auto", "n": "1"}
    asked = alice.http.build_request(
        "POST", "/dashboard/playground/draw", data=form, headers={"X-CSRFToken": CSRF}
    )
    head = "".join(f"{name}: {value}\r\n" for name, value in asked.headers.items())
    with socket.create_connection((asked.url.host, asked.url.port or 80)) as connection:
        connection.sendall(f"POST {asked.url.path} HTTP/1.1\r\n{head}\r\n".encode() + asked.read())
    wait_until(lambda: Generation.objects.exists())
    app.drain()
    wait_until(lambda: Generation.objects.get().status == GenerationStatus.SUCCEEDED)
    assert LedgerEntry.objects.filter(kind="consumption").count() == 1
    assert alice.get("/dashboard/playground").status_code == 200
    assert "Exception in ASGI" not in caplog.text


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


# --- Who may ----------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [Role.VIEWER, Role.BILLING])
def test_who_may_not_draw_draws_nothing(
    role: Role, visit: Callable[..., Visitor], acme: Organization
) -> None:
    visitor = visit(member_of(acme, role))
    assert visitor.get("/dashboard/playground").status_code == 403
    assert draw(visitor, sandbox="on").status_code == 403
    assert not Generation.objects.exists()


def test_another_organizations_request_is_not_found(
    app: AppServer, alice: Visitor, visit: Callable[..., Visitor], globex: Organization
) -> None:
    theirs = request_id(draw(visit(owner_of(globex)), sandbox="on"))
    mine = request_id(draw(alice, sandbox="on"))
    app.drain()
    path = "/dashboard/playground/results"
    assert alice.get(path, params={"id": mine}).status_code == 200
    assert alice.get(path, params={"id": theirs}).status_code == 404
    assert alice.get(path, params={"id": [mine, theirs]}).status_code == 404
    assert alice.get(path, params={"id": "req_0"}).status_code == 404
    assert alice.get(path).status_code == 404
    assert theirs not in alice.get("/dashboard/playground").text


def test_a_form_of_another_site_draws_nothing(alice: Visitor, acme: Organization) -> None:
    data = {"run": "a" * 32, "prompt": PROMPT, "models": FLUX, "size": "auto", "n": "1"}
    assert alice.http.post("/dashboard/playground/draw", data=data).status_code == 403
    assert not Generation.objects.exists()


# --- The page ---------------------------------------------------------------------------------


def test_the_price_before_is_exact(acme: Organization, client: Client) -> None:
    log_in(client, owner_of(acme))
    page = client.get("/dashboard/playground?model=fal/sd-3.5-large&model=fal/ideogram-v2").text
    cards = dict(re.findall(r'name="models" value="([^"]+)" data-micro="(\d+)"', page))
    assert cards == {model.id: str(model.price_micro) for model in CATALOG.values()}
    # Without a gateway all count as able, so the page opens with live pictures.
    assert re.search(r'<output id="total"[^>]*>\$0\.145</output>', page)
    assert len(page.encode()) < 150_000


def test_where_no_provider_is_set_up_test_pictures_are_offered(
    serve: Callable[[], AppServer], acme: Organization, settings: Settings
) -> None:
    settings.PROVIDERS = {name: {**one, "key": ""} for name, one in settings.PROVIDERS.items()}
    visitor = Visitor(serve(), owner_of(acme))
    with visitor.http:
        page = visitor.get("/dashboard/playground").text
        assert re.search(r'name="sandbox"[^>]* checked', page)
        assert "No provider is set up on this server" in page
        assert "The provider is down, too slow or not set up." in draw(visitor).text
        assert not Generation.objects.exists()


def test_the_python_of_the_page_runs(app: AppServer, acme: Organization, test_key: NewKey) -> None:
    tricky = 'a "quoted" \\ kite\nof $HOME, `it\'s` ñ'
    request = GenerationRequest(models=(FLUX,), listed=False, prompt=tricky, n=2, seed=7)
    programs = snippets(request, [FLUX, GPT], origin=app.origin, sandbox=True)
    code = {one.id: one.code.replace("ghub_sk_test_YOUR_KEY", test_key.secret) for one in programs}
    ran = subprocess.run([sys.executable, "-c", code["python"]], capture_output=True, check=True)
    assert ran.stdout.decode().count("http://pictures.test/") == 4
    subprocess.run(["sh", "-ec", code["curl"]], capture_output=True, check=True)
    rows = Generation.objects.order_by("created_at")
    assert [row.requested for row in rows] == [[FLUX], [GPT]] * 2
    assert {row.prompt for row in rows} == {tricky}
    assert all(row.parameters == {"listed": False, "n": 2, "seed": 7} for row in rows)


def test_the_code_follows_the_form(alice: Visitor, settings: Settings) -> None:
    form = {"run": "a" * 32, "prompt": "<b>", "models": FLUX, "size": "auto", "n": "3"}
    text = alice.post("/dashboard/playground/code", **form).text
    assert f"{settings.PUBLIC_URL}/v1/images/generations" in text
    assert "ghub_sk_live_YOUR_KEY" in text
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    assert "n=3" in text
    assert alice.post("/dashboard/playground/code", **form | {"prompt": ""}).status_code == 204
    assert not ApiKey.objects.filter(playground=True).exists()


# --- Prompts are private ----------------------------------------------------------------------


def test_an_organization_that_keeps_no_prompts_keeps_none(
    app: AppServer, alice: Visitor, acme: Organization, openai: OpenAIEmulator, api: Api
) -> None:
    acme.keeps_prompts = False
    acme.save()
    draw(alice, "openai/dall-e-3")
    answer = api.draw(prompt=PROMPT, model="openai/dall-e-3")
    app.drain()
    # Only the person who asked sees the revised prompt, once.
    assert answer.json()["data"][0]["revised_prompt"] == f"{PROMPT}, in detail"
    assert set(Generation.objects.values_list("prompt", flat=True)) == {""}
    assert set(Image.objects.values_list("revised_prompt", flat=True)) == {""}
    for path in ("/dashboard/gallery", "/dashboard/playground"):
        assert PROMPT not in alice.get(path).text
    picture = Image.objects.first()
    assert picture
    assert "The prompt was not kept." in alice.get(f"/dashboard/gallery/{picture.reference}").text


def test_no_prompt_reaches_the_logs(
    app: AppServer, alice: Visitor, api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the tests' own client
    logging.getLogger("httpcore").setLevel(logging.WARNING)
    word = "zanahoria"
    answer = api.draw(prompt=f"a {word}", model=FLUX)
    api.draw(prompt=f"sandbox:refuse {word}")
    api.draw(prompt=f"a {word}", model=[FLUX, GPT], size="7x7")
    drawn = draw(alice, prompt=f"a {word}")
    draw(alice, prompt=f"a {word} sandbox:error=internal_error", sandbox="on")
    draw(alice, prompt=f"a {word}", n="99")
    app.drain()
    alice.get("/dashboard/playground")
    alice.get("/dashboard/playground/results", params={"id": request_id(drawn)})
    assert word in alice.get("/dashboard/gallery", params={"q": word}).text
    alice.get(f"/dashboard/gallery/{answer.json()['id']}-0")
    alice.get("/dashboard/gallery", params={"q": word, "after": "nothing"})
    alice.get(f"/dashboard/gallery/zip?picture={answer.json()['id']}-0")
    lines = [f"{record.getMessage()} {record.exc_text or ''}" for record in caplog.records]
    assert any("drawn" in line for line in lines), "the log is listened to"
    assert any("'event': 'request'" in line for line in lines)
    assert [line for line in lines if word in line] == []


def checked(text: str) -> list[str]:
    """Return the models that the page has chosen."""
    boxes = re.findall(r'<input type="checkbox" name="models" value="([^"]*)"([^>]*)>', text)
    return [model for model, rest in boxes if "checked" in rest]


def test_what_a_provider_has_switched_off_is_marked_and_not_chosen(
    acme: Organization, client: Client
) -> None:
    today = timezone.localdate(timezone=UTC)
    off = {
        one.id
        for one in CATALOG.values()
        if one.upstream_off is not None and one.upstream_off <= today
    }
    assert len(off) >= 3
    log_in(client, owner_of(acme))
    text = client.get("/dashboard/playground").text
    assert len(checked(text)) == 3
    assert off & set(checked(text)) == set()
    assert text.count("Discontinued by its provider") == len(off)
    # Who asks for one by its name gets it.
    asked = client.get("/dashboard/playground?model=openai/dall-e-3").text
    assert checked(asked) == ["openai/dall-e-3"]


def test_what_the_balance_does_not_cover_is_refused_before_anything_is_drawn(
    alice: Visitor, acme: Organization, openai: OpenAIEmulator
) -> None:
    ledger.record(acme, EntryKind.ADJUSTMENT, -9_900_000, entry_key="x", note="test")  # 0.10 left
    form = {"run": "a" * 32, "prompt": PROMPT, "models": [FLUX, GPT], "size": "auto", "n": "1"}
    answer = alice.post("/dashboard/playground", **form)
    assert answer.status_code == 422
    assert "Not enough balance: this costs $0.29 and $0.10 is available." in answer.text
    assert not Generation.objects.exists()
    assert not Hold.objects.exists()
    assert openai.calls == []
    # Test pictures are free.
    assert alice.post("/dashboard/playground", **form, sandbox="on").status_code == 302


def test_the_balance_beside_the_price_is_the_one_of_now(
    app: AppServer, alice: Visitor, acme: Organization
) -> None:
    assert 'data-available="10000000"' in alice.get("/dashboard/playground").text
    answer = draw(alice, FLUX)
    assert answer.headers["x-available-micro"] == "9960000"
    app.drain()
    shown = alice.get(f"/dashboard/playground/results?id={request_id(answer)}")
    assert shown.headers["x-available-micro"] == "9960000"


@pytest.mark.parametrize("role", [Role.OWNER, Role.DEVELOPER])
def test_a_suspension_is_not_told_as_a_balance(
    role: Role, visit: Callable[..., Visitor], acme: Organization
) -> None:
    standing.suspend(acme, "stolen cards", None)
    answer = draw(visit(member_of(acme, role)), FLUX)
    assert "Your organization is suspended, so no images can be generated." in answer.text
    assert "Not enough balance" not in answer.text
    assert "stolen cards" not in answer.text
    assert "http://" not in answer.text
    assert ('href="/dashboard/billing"' in answer.text) is (role == Role.OWNER)
    assert not Generation.objects.exists()
