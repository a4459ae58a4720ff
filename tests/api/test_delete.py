"""DELETE /v1/images/{request id}[/{index}], and retention."""

from collections.abc import Callable
from datetime import timedelta

import httpx
from django.core.management import call_command
from django.utils import timezone

from accounts.models import Organization
from billing.models import LedgerEntry
from images.gallery import retention
from images.models import Generation, Image
from tests.api.checks import expect_error
from tests.emulators.base import Behaviour
from tests.emulators.openai import OpenAIEmulator
from tests.factories import KeyFactory
from tests.server import Api, AppServer


def served(app: AppServer, url: str) -> int:
    """Return the status of a picture's URL on the application that keeps it."""
    return httpx.get(app.origin + "/storage/" + url.partition("/storage/")[2]).status_code


def test_one_picture_goes_and_the_ledger_stays(api: Api, app: AppServer) -> None:
    body = api.draw(n=2).json()
    first, second = (row["url"] for row in body["data"])

    answer = api.http.delete(f"images/{body['id']}/0")

    assert answer.status_code == 200
    assert answer.json() == {
        "id": body["id"],
        "object": "image.deleted",
        "deleted": [0],
        "pending": [],
    }
    assert (served(app, first), served(app, second)) == (404, 200)
    told = api.get("generation", params={"id": body["id"]}).json()["data"]
    assert [row["url"] for row in told["images"]] == [second]
    assert LedgerEntry.objects.get(kind="consumption").quantity == 2


def test_all_pictures_of_a_request_go_once(api: Api, app: AppServer) -> None:
    body = api.draw(n=2).json()

    first = api.http.delete(f"images/{body['id']}")
    again = api.http.delete(f"images/{body['id']}")

    assert first.json()["deleted"] == [0, 1]
    expect_error(again, "not_found", says=(f"The request {body['id']} has no image.",))
    one = api.http.delete(f"images/{body['id']}/1")
    expect_error(one, "not_found", says=(f"The request {body['id']} has no image.",))
    assert [served(app, row["url"]) for row in body["data"]] == [404, 404]
    assert Image.objects.filter(purged_at=None).count() == 0


def test_what_is_not_yours_or_not_there_is_a_404(
    api: Api, globex: Organization, connect: Callable[[str | None], Api], app: AppServer
) -> None:
    body = api.draw().json()
    stranger = connect(KeyFactory(organization=globex).secret)

    assert stranger.http.delete(f"images/{body['id']}").status_code == 404
    assert api.http.delete(f"images/{body['id']}/1").status_code == 404
    assert api.http.delete(f"images/req_{'0' * 24}").status_code == 404
    assert connect(None).http.delete(f"images/{body['id']}").status_code == 401
    assert served(app, body["data"][0]["url"]) == 200
    assert Image.objects.get().deleted_at is None


def test_a_request_that_failed_has_none_and_a_gap_is_no_end(
    api: Api, openai: OpenAIEmulator
) -> None:
    openai.always(Behaviour(error="moderation_blocked"))
    failed = api.draw().headers["x-request-id"]
    expect_error(api.http.delete(f"images/{failed}"), "not_found")

    openai.always(Behaviour())
    body = api.draw(n=3).json()
    # As when the first of them could not be kept.
    Image.objects.get(index=0).delete()
    Generation.objects.filter(request_id=body["id"]).update(delivered=2)
    answer = api.http.delete(f"images/{body['id']}/0")
    expect_error(answer, "not_found", says=("has no image 0; it has 1, 2.",))
    assert api.http.delete(f"images/{body['id']}/2").json()["deleted"] == [2]
    assert [image.index for image in Image.objects.filter(deleted_at=None)] == [1]


def test_retention_deletes_what_is_old_in_the_workers_round(
    api: Api, acme: Organization, app: AppServer
) -> None:
    old, new = api.draw().json(), api.draw().json()
    Generation.objects.filter(request_id=old["id"]).update(
        created_at=timezone.now() - timedelta(days=91)
    )
    found = retention.preview(acme, 90)
    assert (found.images, found.bytes) == (1, old["data"][0]["bytes"])
    call_command("worker", "--once")
    assert served(app, old["data"][0]["url"]) == 200, "no rule, nothing goes"

    call_command("retention", str(acme.pk), "90", "--apply")
    call_command("worker", "--once")

    assert served(app, old["data"][0]["url"]) == 404
    assert served(app, new["data"][0]["url"]) == 200
    assert LedgerEntry.objects.filter(kind="consumption").count() == 2
