"""The gallery, in a browser: look, select, take along, delete."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from accounts.keys import NewKey
from accounts.models import Organization, User
from images.models import Image
from tests.server import Api, AppServer


@pytest.fixture
def pictures(site: AppServer, test_key: NewKey) -> list[str]:
    """Three pictures of Acme: their references, newest first."""
    api = Api(site.origin, test_key.secret)
    with api.http:
        for prompt in ("a red kite", "a blue boat", "a green hill"):
            api.draw(prompt=prompt, model="fal/flux-1.1-pro").raise_for_status()
    return [one.reference for one in Image.objects.order_by("-generation__created_at")]


def test_select_zip_and_delete(
    page: Page, login: Callable[[User], None], acme: Organization, pictures: list[str]
) -> None:
    login(acme.memberships.get().user)
    page.goto("/dashboard/gallery")
    expect(page.locator(".tile")).to_have_count(3)
    for reference in pictures[:2]:
        page.locator(f'input[value="{reference}"]').check()
    expect(page.locator("#chosen")).to_have_text("2 selected")

    with page.expect_download() as download:
        page.get_by_role("button", name="Download as zip").click()
    archive = zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes()))
    assert archive.testzip() is None
    stems = [name.rsplit("_req_", 1)[1].split(".")[0] for name in archive.namelist()]
    assert [f"req_{stem}" for stem in stems] == pictures[:2]

    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Delete 2 images?")
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_text("2 images deleted.")).to_be_visible()
    expect(page.locator(".tile")).to_have_count(1)
    kept = Image.objects.get(deleted_at=None)
    assert kept.reference == pictures[2]


def test_a_picture_opens_in_front_and_is_found_by_its_words(
    page: Page, login: Callable[[User], None], acme: Organization, pictures: list[str]
) -> None:
    login(acme.memberships.get().user)
    page.goto("/dashboard/gallery")
    page.get_by_label("Search prompts").fill("BLUE boat")
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(page.locator(".tile")).to_have_count(1)
    page.locator("a.frame").click()
    box = page.get_by_role("dialog", name="Image")
    expect(box).to_be_visible()
    expect(box).to_contain_text("a blue boat")
    box.get_by_role("button", name="Close").click()
    expect(box).not_to_be_visible()
