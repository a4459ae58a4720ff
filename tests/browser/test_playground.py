"""Three models side by side, in a browser."""

import threading
from collections.abc import Callable

from playwright.sync_api import Page, expect

from accounts.models import Organization, User
from images.models import Generation, GenerationStatus
from tests.emulators.base import Behaviour
from tests.emulators.fal import FalEmulator

THREE = ("fal/flux-1.1-pro", "openai/gpt-image-2", "google/gemini-3-pro-image")


def test_three_models_draw_side_by_side(
    page: Page, login: Callable[[User], None], acme: Organization
) -> None:
    login(acme.memberships.get().user)
    page.goto("/dashboard/playground")
    page.get_by_label("Prompt").fill("a red kite over the sea")
    for box in page.locator("input[name=models]").all():
        box.set_checked(box.get_attribute("value") in THREE)
    page.get_by_label("Images per model").select_option("2")
    # 0.04 + 0.15 + … of the catalogue, twice: what the page says is exact.
    each = sum(
        int(page.locator(f'input[value="{model}"]').get_attribute("data-micro") or 0)
        for model in THREE
    )
    shown = page.locator("#total")
    expect(shown).to_have_text(f"${each * 2 / 1_000_000:.2f}")
    page.get_by_label("Sandbox: free").check()
    expect(shown).to_have_text("$0.00")

    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("article[data-state=succeeded]")).to_have_count(3)
    expect(page.locator("#results img")).to_have_count(6)
    expect(page.locator("#progress")).to_have_text("3 of 3 done")
    expect(page.locator("#code")).to_contain_text("a red kite over the sea")

    rows = Generation.objects.filter(organization=acme)
    assert {row.model for row in rows} == set(THREE)
    assert all(row.status == GenerationStatus.SUCCEEDED and row.cost_micro == 0 for row in rows)
    # What was drawn is still there after a reload, and in the gallery.
    page.reload()
    expect(page.locator("#results img")).to_have_count(6)
    page.goto("/dashboard/gallery")
    expect(page.locator(".tile")).to_have_count(6)


def test_a_model_that_fails_says_why_and_the_others_draw(
    page: Page, login: Callable[[User], None], acme: Organization
) -> None:
    login(acme.memberships.get().user)
    page.goto("/dashboard/playground")
    page.get_by_label("Prompt").fill("a kite sandbox:refuse@fal/flux-1.1-pro")
    for box in page.locator("input[name=models]").all():
        box.set_checked(box.get_attribute("value") in THREE)
    page.get_by_label("Sandbox: free").check()
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("article[data-state=succeeded]")).to_have_count(2)
    failed = page.locator("article[data-state=failed]")
    expect(failed).to_contain_text("The provider refused the prompt or the image.")
    expect(failed).to_contain_text("Nothing was charged.")


def test_a_reload_while_it_draws_loses_nothing(
    page: Page, login: Callable[[User], None], acme: Organization, fal: FalEmulator
) -> None:
    gate = threading.Event()
    fal.always(Behaviour(gate=gate))
    login(acme.memberships.get().user)
    page.goto("/dashboard/playground")
    page.get_by_label("Prompt").fill("a kite")
    for box in page.locator("input[name=models]").all():
        box.set_checked(box.get_attribute("value") == THREE[0])
    try:
        page.get_by_role("button", name="Generate", exact=True).click()
        expect(page.locator("article[data-state=running]")).to_have_count(1)
        page.reload()
        expect(page.locator("article[data-state=running]")).to_have_count(1)
    finally:
        gate.set()
    expect(page.locator("article[data-state=succeeded]")).to_have_count(1)
    assert Generation.objects.filter(organization=acme).count() == 1
