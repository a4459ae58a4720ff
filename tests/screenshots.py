"""Pictures of every page of the dashboard: light and dark, phone and desktop.

    make screenshots            into a temporary folder, those of the README into docs/screenshots
    make screenshots ARGS=DIR   into DIR

Starts the service as the demo does, with a database of its own, and draws with the sandbox.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image as Pillow
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.chromium import DESKTOP, NAMES, PHONE, chromium

ROOT = Path(__file__).resolve().parent.parent
CHOSEN = ROOT / "docs" / "screenshots"
LOGIN = "ana@geekhub.test"
START_SECONDS = 60
PROMPTS = (
    "A lighthouse at dusk, its beam on the waves, woodcut",
    "A red kite over the sea",
    "Street food stand in Oaxaca at night, neon, film grain",
    "An axolotl librarian, watercolour",
    "Isometric workshop of a robot clockmaker",
    "Jacaranda trees in bloom, poster",
)
MODELS = (
    "fal/flux-1.1-pro",
    "openai/gpt-image-2",
    "google/gemini-3-pro-image",
    "xai/grok-imagine-image",
    "fal/recraft-v3",
)
PAGES = {
    "welcome": "/dashboard/welcome",
    "overview": "/dashboard",
    "playground": "/dashboard/playground",
    "gallery": "/dashboard/gallery",
    "usage": "/dashboard/usage",
    "keys": "/dashboard/keys",
    "key-new": "/dashboard/keys/new",
    "settings": "/dashboard/settings",
    "members": "/dashboard/settings/members",
    "audit": "/dashboard/settings/audit",
    "billing": "/dashboard/billing",
    "billing-movements": "/dashboard/billing/movements",
    "billing-invoices": "/dashboard/billing/invoices",
    "billing-budgets": "/dashboard/billing/budgets",
    "billing-alerts": "/dashboard/billing/alerts",
    "organization-new": "/dashboard/organizations/new",
    "email": "/accounts/email/",
    "two-factors": "/accounts/2fa/",
    "sessions": "/accounts/sessions/",
}
ANONYMOUS = {"login": "/login", "signup": "/accounts/signup/"}
# Ends when every picture is there, or after five seconds.
LOADED = """Promise.race([
    new Promise((done) => setTimeout(done, 5000)),
    Promise.all([...document.images].map((image) => image.decode().catch(() => null))),
]).then(() => null)"""
# (page, scheme, screen) of the pictures in the README.
README = {
    ("overview", "light", "desktop"),
    ("playground", "dark", "desktop"),
    ("usage", "light", "desktop"),
    ("gallery", "dark", "desktop"),
}


def main() -> int:
    """Take the pictures; return how many pages could not be opened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="where to; else a temporary folder")
    folder = parser.parse_args().folder or Path(tempfile.mkdtemp(prefix="screenshots-"))
    folder.mkdir(parents=True, exist_ok=True)
    CHOSEN.mkdir(parents=True, exist_ok=True)
    program = chromium()
    if program is None:
        print(f"no Chromium: none of {', '.join(NAMES)} is installed", file=sys.stderr)
        return 1
    failed = 0
    with service() as (origin, password, key), sync_playwright() as playwright:
        fill(origin, key)
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            for screen, size in (("desktop", DESKTOP), ("phone", PHONE)):
                failed += take(browser, origin, password, scheme, screen, size, folder)
        browser.close()
    print(f"{len(list(folder.glob('*.png')))} pictures in {folder}; {failed} pages failed")
    return failed


@contextmanager
def service() -> Iterator[tuple[str, str, str]]:
    """Yield the origin of a running service, a password for LOGIN and a sandbox key."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="screenshots-data-") as data:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        origin = f"http://127.0.0.1:{port}"
        environment = kept | {
            "DEMO": "true",
            "DATA_DIR": data,
            "DATABASE_URL": f"sqlite:///{data}/db.sqlite3",
            "PORT": str(port),
            "PUBLIC_URL": origin,
            "LOG_LEVEL": "WARNING",
            "ENV_FILE": "",
            "WEB_WORKERS": "1",
        }
        server = subprocess.Popen(
            ["bin/serve"],
            cwd=ROOT,
            env=environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
        )
        try:
            wait_for(origin, server)
            made = subprocess.run(
                [sys.executable, "manage.py", "demo_account", LOGIN],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                check=True,
            )
            account = json.loads(made.stdout)
            yield origin, account["password"], account["key"]
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def wait_for(origin: str, server: "subprocess.Popen[bytes]") -> None:
    """Return when the service can work; raises RuntimeError when it does not come up."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            if httpx.get(f"{origin}/ready", timeout=2).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise RuntimeError("the service did not start; its messages are above")


def fill(origin: str, key: str) -> None:
    """Draw what the pages show, a refusal among it."""
    dice = random.Random(7)
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=f"{origin}/v1", headers=headers, timeout=60) as api:
        for prompt in PROMPTS:
            for model in dice.sample(MODELS, 3):
                body = {"model": model, "prompt": prompt, "n": dice.choice((1, 1, 2))}
                api.post("/images/generations", json=body).raise_for_status()
        api.post(
            "/images/generations",
            json={"model": MODELS[0], "prompt": "sandbox:refuse of a picture"},
        )


def take(
    browser: Browser,
    origin: str,
    password: str,
    scheme: Any,
    screen: str,
    size: Any,
    folder: Path,
) -> int:
    """Take every page in one scheme and size; return how many could not be opened."""
    failed = 0
    profile = browser.new_context(
        base_url=origin, viewport=size, color_scheme=scheme, locale="en-US", timezone_id="UTC"
    )
    page = profile.new_page()
    for name, path in ANONYMOUS.items():
        failed += shoot(page, name, path, scheme, screen, folder)
    page.goto("/login")
    page.locator("input[name=login]").fill(LOGIN)
    page.locator("input[name=password]").fill(password)
    page.locator("input[name=password]").press("Enter")
    page.wait_for_url("**/dashboard**")
    for name, path in PAGES.items():
        failed += shoot(page, name, path, scheme, screen, folder)
    profile.close()
    return failed


def shoot(page: Page, name: str, path: str, scheme: str, screen: str, folder: Path) -> int:
    """Take one page; return 1 when it is not there."""
    answer = page.goto(path)
    if answer is None or not answer.ok:
        print(f"{path}: {answer and answer.status}", file=sys.stderr)
        return 1
    if name == "playground":
        draw(page)
    page.wait_for_load_state("networkidle")
    # Chromium hides its scroll bars here, and would show the room for them.
    page.evaluate("document.documentElement.style.scrollbarGutter = 'auto'")
    if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        print(f"{path} is wider than a {screen}", file=sys.stderr)
    file = folder / f"{name}-{scheme}-{screen}.png"
    if (name, scheme, screen) in README:
        chosen = CHOSEN / file.name
        page.screenshot(path=chosen)
        shrink(chosen)
    # As high as the page: then what loads late, loads, and what stays in view is at its place.
    size = page.viewport_size
    assert size is not None
    height = int(page.evaluate("document.documentElement.scrollHeight"))
    page.set_viewport_size({"width": size["width"], "height": max(size["height"], height)})
    page.wait_for_load_state("networkidle")
    page.evaluate(LOADED)
    page.screenshot(path=file)
    page.set_viewport_size(size)
    return 0


def draw(page: Page) -> None:
    """Let the playground draw with three models, once; later pages show it again."""
    page.get_by_label("Prompt").fill(PROMPTS[3])
    page.locator("#code pre").first.wait_for()
    if page.locator("article.result").count():
        page.get_by_label("Prompt").blur()
        return
    for box in page.locator("input[name=models]").all():
        box.set_checked(box.get_attribute("value") in MODELS[:3])
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator("article[data-state=succeeded]").nth(2).wait_for()
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")


def shrink(file: Path) -> None:
    """Let a picture have 256 colours: a quarter of its bytes, and nobody sees it."""
    with Pillow.open(file) as image:
        few = image.convert("RGB").quantize(256, dither=Pillow.Dither.NONE)
    few.save(file, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
