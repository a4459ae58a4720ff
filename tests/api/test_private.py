"""Private keys: signed, expiring addresses instead of public ones."""

from collections.abc import Callable

import httpx
import pytest
from django.core.management import call_command
from pytest_django.fixtures import Settings

from accounts.models import Organization
from images.models import Image
from tests.factories import KeyFactory
from tests.server import Api, AppServer


@pytest.fixture
def private(connect: Callable[[str | None], Api], acme: Organization) -> Api:
    """A client with a private key of Acme."""
    return connect(KeyFactory(organization=acme, private=True).secret)


def get(app: AppServer, url: str) -> httpx.Response:
    """Return the answer of the application for a picture's address."""
    return httpx.get(app.origin + "/storage/" + url.partition("/storage/")[2])


def test_only_the_signed_address_shows_a_private_picture(private: Api, app: AppServer) -> None:
    url = private.draw().json()["data"][0]["url"]

    path, _, token = url.partition("?token=")
    name = Image.objects.get().name
    assert path == f"http://pictures.test/storage/v1/object/sign/private-images/{name}"
    shown = get(app, url)
    assert (shown.status_code, shown.headers["content-type"]) == (200, "image/png")
    assert shown.headers["cache-control"] == "private, no-store"
    assert get(app, path).status_code == 404
    assert get(app, f"{path}?token={token[:-1]}").status_code == 404
    assert (
        get(app, path.replace("/sign/private-images/", "/public/generated-images/")).status_code
        == 404
    )


def test_a_token_is_for_one_picture_and_for_a_time(
    private: Api, app: AppServer, settings: Settings
) -> None:
    first, second = (row["url"] for row in private.draw(n=2).json()["data"])
    token = first.partition("?token=")[2]
    assert get(app, second.partition("?")[0] + f"?token={token}").status_code == 404

    options = settings.STORAGES["private_images"]["OPTIONS"]
    expired = {**settings.STORAGES["private_images"], "OPTIONS": {**options, "expires_in": -1}}
    settings.STORAGES = {**settings.STORAGES, "private_images": expired}

    assert get(app, first).status_code == 404


def test_each_look_at_the_request_gives_a_working_address(private: Api, app: AppServer) -> None:
    body = private.draw(response_format="b64_json").json()

    told = private.get("generation", params={"id": body["id"]}).json()["data"]["images"][0]

    assert get(app, told["url"]).status_code == 200
    assert len(get(app, told["url"]).content) == told["bytes"]


def test_private_pictures_are_deleted_and_verified_like_others(
    private: Api, app: AppServer, api: Api
) -> None:
    body = private.draw().json()
    api.draw()
    call_command("verify_storage")

    private.http.delete(f"images/{body['id']}")

    assert get(app, body["data"][0]["url"]).status_code == 404
    call_command("verify_storage")
