"""No text is without Spanish, and the compiled catalogue is the written one. Needs no gettext.

Pages in Spanish say tú, also where allauth and Django speak; the API speaks English.
"""

import ast
import gettext
import re
from pathlib import Path

import allauth
import django
import pytest
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal.auth import TOTP, generate_totp_secret
from django.conf import settings
from django.contrib import auth
from django.test import Client
from django.urls import reverse
from django.utils.translation.template import templatize
from pytest_django.fixtures import Settings

from accounts.models import Organization, User
from billing.models import EntryKind
from billing.pages.words import NOTES
from billing.spending import ledger
from images.catalog.rows import CATALOG as MODELS
from tests.pages import log_in, owner_of
from tests.pages.test_billing import owe
from tests.server import Api

ROOT = Path(__file__).resolve().parent.parent.parent
CATALOG = ROOT / "locale" / "es" / "LC_MESSAGES" / "django.po"
APPS = ("geekhub", "accounts", "billing", "images")
CALLS = {
    "gettext",
    "gettext_lazy",
    "gettext_noop",
    "_",
    "_now",
    "ngettext",
    "ngettext_lazy",
    "pgettext",
}
CONTEXT = "\x04"


def texts(tree: ast.AST) -> set[str]:
    """Return what is marked for translation in Python code, a context before its text."""
    found = set()
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        if node.func.id not in CALLS:
            continue
        words = [one.value for one in node.args if isinstance(one, ast.Constant)]
        if words and isinstance(words[0], str):
            with_context = node.func.id == "pgettext"
            found.add(CONTEXT.join(words[:2]) if with_context else words[0])
    return found


def in_template(path: Path) -> set[str]:
    """Return what is marked in a template, through Django's own translation to code."""
    code = templatize(path.read_text(), origin=str(path))
    found = set()
    for match in re.finditer(r"\b(?:gettext|_|ngettext|pgettext)\(", code):
        rest = code[match.start() :]
        for end in (one.end() for one in re.finditer(r"\)", rest)):
            try:
                tree = ast.parse(rest[:end].replace("\n", "\\n"), mode="eval")
            except SyntaxError:
                continue
            found |= texts(tree)
            break
    return found


def marked() -> dict[str, Path]:
    """Return every text for people and the file it is in."""
    found = {}
    for app in APPS:
        for path in (ROOT / app).rglob("*.py"):
            found |= dict.fromkeys(texts(ast.parse(path.read_text())), path)
    for path in (ROOT / "templates").rglob("*.*"):
        if path.suffix in (".html", ".txt"):
            found |= dict.fromkeys(in_template(path), path)
    return found


def written(catalog: Path = CATALOG) -> dict[str, list[str]]:
    """Return a catalogue as written: each text and its translations, one for each plural."""
    found = {}
    for block in re.split(r"\n\s*\n", catalog.read_text()):
        parts: dict[str, str] = {}
        current = ""
        for line in block.splitlines():
            start = re.match(r"(msg\w+(?:\[\d\])?) (\".*)", line)
            if start:
                current, line = start.groups()
            if current and line.startswith('"'):
                parts[current] = parts.get(current, "") + ast.literal_eval(line)
        if "msgid" in parts:
            name = parts["msgid"]
            if "msgctxt" in parts:
                name = parts["msgctxt"] + CONTEXT + name
            found[name] = [text for key, text in parts.items() if key.startswith("msgstr")]
    found.pop("", None)
    return found


WRITTEN = written()
MARKED = marked()
# What is empty is the business of one test alone.
DONE = {text: many for text, many in WRITTEN.items() if all(many)}


def test_the_texts_are_found() -> None:
    assert {"API keys", "Save", "Owner", "Copied", "%(n)s model"} <= set(MARKED)
    assert len(WRITTEN) > 150


def test_no_text_is_without_spanish() -> None:
    missing = {
        text: str(path.relative_to(ROOT))
        for text, path in MARKED.items()
        if not all(WRITTEN.get(text, [""]))
    }
    assert missing == {}


def test_nothing_is_translated_that_nobody_says() -> None:
    assert set(WRITTEN) - set(MARKED) == set()


def test_nothing_is_marked_by_a_name_that_is_not_looked_for() -> None:
    names = {
        one.asname or one.name
        for app in APPS
        for path in (ROOT / app).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "django.utils.translation"
        for one in node.names
        if "gettext" in one.name
    }
    assert names <= CALLS


def test_nothing_is_marked_inside_an_f_string() -> None:
    # xgettext does not look into them.
    hidden = {
        text: str(path.relative_to(ROOT))
        for app in APPS
        for path in (ROOT / app).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.JoinedStr)
        for text in texts(node)
    }
    assert hidden == {}


def test_nothing_is_marked_as_doubtful() -> None:
    assert "fuzzy" not in CATALOG.read_text()


@pytest.mark.parametrize("pattern", [r"%\(\w+\)s", r"(?<!%)%s", r"\{\w*\}", r"</?\w+"])
def test_placeholders_survive(pattern: str) -> None:
    for text, translations in DONE.items():
        for translation in translations:
            assert sorted(re.findall(pattern, text)) == sorted(re.findall(pattern, translation))


def test_the_compiled_catalogue_is_the_written_one() -> None:
    with CATALOG.with_suffix(".mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)
    for text, translations in DONE.items():
        if len(translations) == 1:
            assert compiled.gettext(text) == translations[0], text
        else:
            assert compiled.ngettext(text, text, 1) == translations[0], text
            assert compiled.ngettext(text, text, 2) == translations[-1], text


# --- What allauth and Django say ----------------------------------------------------------------

WORDING = texts(ast.parse((ROOT / "accounts" / "pages" / "wording.py").read_text()))
# Words that only who says usted uses, on these pages.
USTED = re.compile(
    r"\b(usted|sus?|les?|ha|haya|está seguro|asegúrese|complete|compruebe|confirme|contáctenos|"
    r"corrija|desea|escoja|escriba|haga|ingrese|inicie|introduzca|inténtelo|póngase|regístrese|"
    r"seleccione|solicite|tome|utilice|vuelva)\b",
    re.IGNORECASE,
)
ENTRANCE = (
    *("account_login", "account_signup", "account_reset_password", "account_reset_password_done"),
    *("account_reset_password_from_key_done", "account_inactive"),
    *("socialaccount_login_cancelled", "socialaccount_login_error"),
)
ACCOUNT = (
    *("account_email", "account_change_password", "account_reauthenticate", "account_logout"),
    *("mfa_index", "mfa_activate_totp", "mfa_list_webauthn", "mfa_add_webauthn"),
    *("usersessions_list", "socialaccount_connections"),
)
FACTORS = ("mfa_deactivate_totp", "mfa_generate_recovery_codes", "mfa_view_recovery_codes")


def theirs() -> dict[str, list[str]]:
    """Return what Django and allauth have in Spanish."""
    found: dict[str, list[str]] = {}
    for module, folder in ((django, "conf/locale"), (auth, "locale"), (allauth, "locale")):
        assert module.__file__
        place = Path(module.__file__).parent / folder
        found |= written(place / "es" / "LC_MESSAGES" / "django.po")
    return found


def words(html: str) -> str:
    """Return what a page shows, without its tags and scripts."""
    return " ".join(re.sub(r"<script.*?</script>|<[^>]*>", " ", html, flags=re.DOTALL).split())


@pytest.fixture
def spanish(client: Client, settings: Settings) -> Client:
    """Somebody who reads the pages in Spanish."""
    settings.OPEN_FOR_SIGNUP = True
    settings.MFA_WEBAUTHN_ALLOW_INSECURE_ORIGIN = True
    client.cookies[settings.LANGUAGE_COOKIE_NAME] = "es"
    return client


def test_what_is_said_otherwise_is_still_said() -> None:
    assert len(WORDING) > 50
    assert WORDING - set(theirs()) == set()


def test_what_is_said_otherwise_says_tu() -> None:
    usted = {
        one: found[0] for text in WORDING for one in WRITTEN[text] if (found := USTED.search(one))
    }
    assert usted == {}


@pytest.mark.django_db
@pytest.mark.parametrize("name", ENTRANCE)
def test_the_entrance_says_tu(name: str, spanish: Client) -> None:
    says_tu(spanish, name)


@pytest.mark.parametrize("name", [*ACCOUNT, *FACTORS])
def test_the_pages_of_ones_account_say_tu(name: str, spanish: Client, acme: Organization) -> None:
    owner = owner_of(acme)
    prove(spanish, owner)
    if name in FACTORS:
        TOTP.activate(owner, generate_totp_secret())
        RecoveryCodes.activate(owner)
    says_tu(spanish, name)


def prove(client: Client, user: User) -> None:
    """Log in by the page, and give the password once more, which the pages of factors ask for."""
    password = "correct horse battery"
    client.post(reverse("account_login"), {"login": user.email, "password": password})
    client.post(reverse("account_reauthenticate"), {"password": password})


def says_tu(client: Client, name: str) -> None:
    """Check that a page is there, in Spanish, and says tú."""
    answer = client.get(reverse(name))
    assert answer.status_code == (401 if name == "socialaccount_login_error" else 200)
    assert answer["content-language"] == "es"
    found = USTED.search(words(answer.content.decode()))
    assert found is None, found


@pytest.mark.django_db
def test_errors_of_a_form_say_tu(spanish: Client) -> None:
    form = {"email": "nina", "password1": "12345678", "organization": "x" * 101}
    text = words(spanish.post(reverse("account_signup"), form).content.decode())
    assert "Escribe un correo electrónico válido." in text
    assert "Este valor debe tener como máximo 100 caracteres (tiene 101)." in text
    assert USTED.search(text) is None


def test_a_passkeys_name_has_a_label(spanish: Client, acme: Organization) -> None:
    owner = owner_of(acme)
    prove(spanish, owner)
    text = words(spanish.get(reverse("mfa_add_webauthn")).content.decode())
    assert "Nombre" in text
    assert "Sin contraseña" in text
    assert re.search(r"\bName\b", text) is None


# --- What stays in English, and what does not ---------------------------------------------------


def test_the_playground_says_in_spanish_what_a_model_is_good_for(
    spanish: Client, acme: Organization
) -> None:
    log_in(spanish, owner_of(acme))
    text = words(spanish.get(reverse("playground")).content.decode())
    for model in MODELS.values():
        (translation,) = WRITTEN[model.good_for]
        assert translation in text
    assert "fotorrealismo, detalle fino" in text
    assert "photorealism" not in text


def test_the_api_says_it_in_english(api: Api) -> None:
    headers = {"Accept-Language": "es-MX,es", "Cookie": f"{settings.LANGUAGE_COOKIE_NAME}=es"}
    told = api.get("models", headers=headers).json()["data"]
    described = {one["id"]: one["description"] for one in told if one["id"] in MODELS}
    assert len(described) > 10
    assert described == {one: MODELS[one].good_for for one in described}


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("nothing", "Esto no es una URL."),
        ("https://hooks.test:99/", "La URL debe empezar con https://"),
        ("https://10.0.0.1/", "La URL debe llevar un nombre de host, no una dirección IP."),
    ],
)
def test_why_alerts_cannot_be_sent_there_is_told_in_spanish(
    url: str, why: str, spanish: Client, acme: Organization
) -> None:
    log_in(spanish, owner_of(acme))
    answer = spanish.post(reverse("billing_alerts_endpoint"), {"url": url})
    assert answer.status_code == 400
    assert why in words(answer.content.decode())


def test_our_own_notes_of_movements_are_shown_in_spanish(
    spanish: Client, acme: Organization
) -> None:
    notes = {
        "Opening credit": "Crédito inicial",
        "Recharge by card": "Recarga con tarjeta",
        "Automatic recharge": "Recarga automática",
        "Open": "Open",  # the words of a person are nobody's to translate
    }
    for note in notes:
        ledger.record(acme, EntryKind.BONUS, 1, entry_key=note, payment_id=f"pi_{note}", note=note)
    paid = owe(acme, "AB-1")
    ledger.record(
        *(acme, EntryKind.RECHARGE, 1), entry_key="paid", invoice=paid, note="Payment of invoice"
    )
    log_in(spanish, owner_of(acme))
    for page in ("billing", "billing_movements"):
        html = spanish.get(reverse(page)).content.decode()
        assert "pi_" not in html
        for shown in ("Bono de registro", "Pago de la factura AB-1", *notes.values()):
            assert f'<small class="soft">{shown}</small>' in html


def test_the_notes_that_are_translated_are_those_that_are_written() -> None:
    code = "".join(
        path.read_text() for path in (ROOT / "billing").rglob("*.py") if path.name != "words.py"
    )
    assert [note for note in NOTES if f'"{note}"' not in code] == []
