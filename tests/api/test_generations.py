"""POST /v1/images/generations, from a client's side of the socket."""

from accounts.models import Organization
from billing.models import BillingAccount, Hold, HoldState, LedgerEntry
from images.models import Generation, Image
from tests.emulators.openai import OpenAIEmulator
from tests.server import Api


def test_a_prompt_becomes_a_picture_and_a_ledger_line(
    api: Api, acme: Organization, openai: OpenAIEmulator
) -> None:
    answer = api.draw(n=2, size="1536x1024")

    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert answer.headers["x-request-id"] == body["id"]
    assert answer.headers["x-geekhub-cost-usd"] == "0.38"
    assert body["model"] == "openai/gpt-image-1"
    generation = Generation.objects.get()
    folder = f"generated-images/{acme.pk}/{generation.pk}"
    assert [row["url"].partition("/public/")[2] for row in body["data"]] == [
        f"{folder}/0.png",
        f"{folder}/1.png",
    ]
    assert [(row["width"], row["height"]) for row in body["data"]] == [(1536, 1024)] * 2
    assert Image.objects.count() == 2
    entry = LedgerEntry.objects.get(kind="consumption")
    assert (entry.amount_micro, entry.quantity, entry.request_id) == (-380_000, 2, body["id"])
    assert Hold.objects.get().state == HoldState.CAPTURED
    account = BillingAccount.objects.get(organization=acme)
    assert (account.balance_micro, account.held_micro) == (9_620_000, 0)
    assert len(openai.calls) == 1
    assert openai.calls[0].body == {
        "model": "gpt-image-1",
        "prompt": "a red kite",
        "n": 2,
        "size": "1536x1024",
    }


def test_a_sandbox_key_draws_for_nothing_and_calls_nobody(
    sandbox: Api, acme: Organization, openai: OpenAIEmulator
) -> None:
    answer = sandbox.draw(model="fal/recraft-v3")

    assert answer.status_code == 200, answer.text
    assert answer.headers["x-geekhub-cost-usd"] == "0.00"
    assert Image.objects.get().width == 1024
    assert Hold.objects.count() == 0
    assert not LedgerEntry.objects.filter(kind="consumption").exists()
    assert openai.calls == []
