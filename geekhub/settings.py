"""Every setting comes from the environment; docs/operations.md lists them all.

A `.env` file in the checkout is read when it is there; the environment wins over it.
"""

import os
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured

from geekhub import logs
from geekhub.lib import mail, money
from geekhub.staff import menu
from images.stores.places import Places

BASE_DIR = Path(__file__).resolve().parent.parent
env = environ.Env()
# ENV_FILE names another file; empty, none is read.
if _env_file := env.str("ENV_FILE", default=str(BASE_DIR / ".env")):
    environ.Env.read_env(_env_file)

# --- The deployment -------------------------------------------------------------------------

DEBUG = env.bool("DEBUG", default=False)
DEMO = env.bool("DEMO", default=False)
DATA_DIR = Path(env.str("DATA_DIR", default=str(BASE_DIR / "var"))).resolve()
PORT = env.int("PORT", default=8000)
PUBLIC_URL = env.str("PUBLIC_URL", default=f"http://127.0.0.1:{PORT}").rstrip("/")
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["127.0.0.1", "localhost", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[PUBLIC_URL])


def _kept_secret(path: Path) -> str:
    """Return the secret in `path`, made on first use; two processes starting at once agree."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return path.read_text()
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(60))
    return path.read_text()


SECRET_KEY = env.str("SECRET_KEY", default="")
if not SECRET_KEY:
    if not (DEBUG or DEMO):
        raise ImproperlyConfigured("SECRET_KEY is required when DEBUG is off")
    SECRET_KEY = _kept_secret(DATA_DIR / "secret_key")

# --- Django ---------------------------------------------------------------------------------

INSTALLED_APPS = [
    "accounts",
    "billing",
    "images",
    # Before the admin, whose templates it replaces. The site is our own, geekhub/staff/site.py.
    "unfold.apps.BasicAppConfig",
    "django.contrib.admin.apps.SimpleAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "allauth",
    "allauth.account",
    "allauth.socialaccount",
    "allauth.mfa",
    "allauth.usersessions",
    "rest_framework",
]
# For the pages. The public API under /v1 has its own handler, geekhub/asgi.py.
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "geekhub.static_files.StaticFiles",
    "django.middleware.csp.ContentSecurityPolicyMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "accounts.staff.viewing.OnlyLooking",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "geekhub.middleware.viewer",
]
ROOT_URLCONF = "geekhub.urls"
WSGI_APPLICATION = "geekhub.wsgi.application"
ASGI_APPLICATION = "geekhub.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "django.template.context_processors.i18n",
                "geekhub.navigation.shell",
            ]
        },
    }
]
AUTH_USER_MODEL = "accounts.User"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "allauth.account.auth_backends.AuthenticationBackend",
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "dashboard"
LOGOUT_REDIRECT_URL = "login"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
APPEND_SLASH = False
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("es", "Español")]
LOCALE_PATHS = [BASE_DIR / "locale"]
FORMAT_MODULE_PATH = ["geekhub.formats"]
LANGUAGE_COOKIE_SAMESITE = "Lax"
STATIC_URL = "/static/"
STATIC_ROOT = DATA_DIR / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]

# --- People ---------------------------------------------------------------------------------

EMAIL_URL = env.str("EMAIL_URL", default="")
# Whether mail reaches anybody. Without it a demo prints what it would send; elsewhere nothing is
# sent, and nobody can sign up, because nobody could prove an address.
SENDS_MAIL = bool(EMAIL_URL)
try:
    MAILERS = {"default": mail.mailer(EMAIL_URL, printed=DEBUG or DEMO)}
except ValueError as _error:
    raise ImproperlyConfigured(f"EMAIL_URL: {_error}") from _error
OPEN_FOR_SIGNUP = env.bool("OPEN_FOR_SIGNUP", default=SENDS_MAIL or DEBUG or DEMO)
DEFAULT_FROM_EMAIL = SERVER_EMAIL = env.str(
    "DEFAULT_FROM_EMAIL", default=f"Geek Hub <noreply@{urlsplit(PUBLIC_URL).hostname}>"
)

# How many proxies are in front, each adding an address to X-Forwarded-For.
TRUSTED_PROXIES = env.int("TRUSTED_PROXIES", default=0)
if TRUSTED_PROXIES < 0:
    raise ImproperlyConfigured("TRUSTED_PROXIES is 0 or more")

ACCOUNT_ADAPTER = "billing.pages.signup.AccountAdapter"
ACCOUNT_FORMS = {
    "signup": "billing.pages.signup.SignupForm",
    "login": "accounts.pages.login_forms.LoginForm",
    "reset_password": "accounts.pages.login_forms.ResetPasswordForm",
}
ACCOUNT_USER_MODEL_USERNAME_FIELD = None
ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*"]
ACCOUNT_EMAIL_SUBJECT_PREFIX = ""
ACCOUNT_EMAIL_NOTIFICATIONS = True
# An address is a person's only when it answers; where no mail is sent, none can.
ACCOUNT_EMAIL_VERIFICATION = "mandatory" if SENDS_MAIL else "optional"
# A code, because the links in mails are opened by scanners, and in another browser.
ACCOUNT_EMAIL_VERIFICATION_BY_CODE_ENABLED = SENDS_MAIL
ACCOUNT_LOGOUT_REDIRECT_URL = LOGOUT_REDIRECT_URL
ACCOUNT_SESSION_REMEMBER = True
ACCOUNT_DEFAULT_HTTP_PROTOCOL = urlsplit(PUBLIC_URL).scheme
# Per address and per account, counted in the cache: with Redis across hosts.
ACCOUNT_RATE_LIMITS = {
    "login": "30/m/ip",
    "login_failed": "10/m/ip,5/5m/key",
    "signup": "20/h/ip",
    "reset_password": "20/m/ip,5/m/key",
    "reset_password_from_key": "20/m/ip",
    # It counts mails, but refuses a login that would send one: right after the sign-up, say.
    "confirm_email": "3/m/key,20/h/key",
    "manage_email": "10/m/user",
    "change_password": "5/m/user",
    "reauthenticate": "10/m/user",
}
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_PASSKEY_LOGIN_ENABLED = True
MFA_TOTP_ISSUER = "Geek Hub"
MFA_FORMS = {
    "add_webauthn": "accounts.pages.mfa_forms.AddPasskeyForm",
    "edit_webauthn": "accounts.pages.mfa_forms.EditPasskeyForm",
}
# Otherwise only for proven addresses, and where no mail is sent, none can be.
MFA_ALLOW_UNVERIFIED_EMAIL = not SENDS_MAIL
# A browser gives passkeys to https and to localhost only.
MFA_WEBAUTHN_ALLOW_INSECURE_ORIGIN = DEBUG or DEMO

SOCIALACCOUNT_PROVIDERS: dict[str, Any] = {}
_login_origins = []
for _name, _id, _secret, _scope, _origin in (
    (
        "google",
        env.str("GOOGLE_LOGIN_CLIENT_ID", default=""),
        env.str("GOOGLE_LOGIN_CLIENT_SECRET", default=""),
        ["email", "profile"],
        "https://accounts.google.com",
    ),
    (
        "github",
        env.str("GITHUB_LOGIN_CLIENT_ID", default=""),
        env.str("GITHUB_LOGIN_CLIENT_SECRET", default=""),
        ["user:email"],
        "https://github.com",
    ),
):
    if bool(_id) != bool(_secret):
        raise ImproperlyConfigured(f"{_name}'s login has a client id and a secret, or neither")
    if _id:
        INSTALLED_APPS.append(f"allauth.socialaccount.providers.{_name}")
        _login_origins.append(_origin)
        SOCIALACCOUNT_PROVIDERS[_name] = {
            "APPS": [{"client_id": _id, "secret": _secret, "key": ""}],
            "SCOPE": _scope,
        }
# A login at Google or GitHub opens the account of the same address when they verified it.
SOCIALACCOUNT_EMAIL_AUTHENTICATION = True
SOCIALACCOUNT_EMAIL_AUTHENTICATION_AUTO_CONNECT = True

# --- Staff ----------------------------------------------------------------------------------

UNFOLD = menu.UNFOLD

# --- Security -------------------------------------------------------------------------------

SECURE_CSP = {
    "default-src": ["'self'"],
    "img-src": ["'self'", "data:"],
    "object-src": ["'none'"],
    "base-uri": ["'none'"],
    # A form's answer may lead to the login of another house.
    "form-action": ["'self'", *_login_origins],
    "frame-ancestors": ["'none'"],
}
_https = urlsplit(PUBLIC_URL).scheme == "https"
CSRF_FAILURE_VIEW = "geekhub.errors.out_of_date"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = _https
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if _https else None
SECURE_HSTS_SECONDS = 31_536_000 if _https else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = _https
SECURE_REDIRECT_EXEMPT = [r"^health$", r"^ready$"]

# --- Database and cache ---------------------------------------------------------------------

# How long a server waits for an answer of PostgreSQL; manage.py's commands wait without a limit.
DATABASE_TIMEOUT_SECONDS = env.float("DATABASE_TIMEOUT_SECONDS", default=30)
if DATABASE_TIMEOUT_SECONDS < 0:
    raise ImproperlyConfigured("DATABASE_TIMEOUT_SECONDS is 0 or more")
DATABASES = {"default": env.db_url("DATABASE_URL", default=f"sqlite:///{DATA_DIR}/db.sqlite3")}
DATABASES["default"] |= {"CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    Path(DATABASES["default"]["NAME"]).parent.mkdir(parents=True, exist_ok=True)
    DATABASES["default"]["OPTIONS"] = {
        # Without IMMEDIATE, two transactions that both go from reading to writing fail at once.
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;",
    }
    # An in-memory test database cannot be shared with the server's threads.
    DATABASES["default"]["TEST"] = {"NAME": str(DATA_DIR / "test.sqlite3")}
else:
    DATABASES["default"]["ENGINE"] = "geekhub.lib.postgresql"
    DATABASES["default"]["OPTIONS"] = {
        "connect_timeout": 5,
        # A host that is gone says nothing: its silence is noticed in half a minute.
        "keepalives_idle": 15,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,
        "answer_within": DATABASE_TIMEOUT_SECONDS,
        **DATABASES["default"].get("OPTIONS", {}),
    }

REDIS_URL = env.str("REDIS_URL", default="")
CACHES = {
    "default": (
        {
            "BACKEND": "geekhub.lib.cache.SteadyRedisCache",
            "LOCATION": REDIS_URL,
            "OPTIONS": {"max_connections": 16},
        }
        if REDIS_URL
        else {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    )
}
# Of their own, so that no picture pushes out what is counted against a login.
CACHES["thumbnails"] = CACHES["default"] | (
    {"KEY_PREFIX": "thumbnail"} if REDIS_URL else {"LOCATION": "thumbnails"}
)

# --- The gateway ----------------------------------------------------------------------------

REQUEST_DEADLINE_SECONDS = env.float("REQUEST_DEADLINE_SECONDS", default=60)
RATE_LIMIT_RPM = env.int("RATE_LIMIT_RPM", default=600)
MAX_IN_FLIGHT = env.int("MAX_IN_FLIGHT", default=200)
DATABASE_THREADS = env.int("DATABASE_THREADS", default=4)
API_MAX_BODY_BYTES = 1024 * 1024

PROVIDERS = {
    "openai": {
        "key": env.str("OPENAI_API_KEY", default=""),
        "base_url": env.str("OPENAI_BASE_URL", default="https://api.openai.com/v1"),
    },
    "google": {
        "key": env.str("GOOGLE_API_KEY", default=""),
        "base_url": env.str(
            "GOOGLE_BASE_URL", default="https://generativelanguage.googleapis.com/v1beta"
        ),
    },
    "xai": {
        "key": env.str("XAI_API_KEY", default=""),
        "base_url": env.str("XAI_BASE_URL", default="https://api.x.ai/v1"),
    },
    "fal": {
        "key": env.str("FAL_KEY", default=""),
        "queue_base_url": env.str("FAL_QUEUE_BASE_URL", default="https://queue.fal.run"),
    },
}
# Ids served by another row of the catalogue: openai/dall-e-3=openai/gpt-image-2,…
MODEL_ALIASES = env.dict("MODEL_ALIASES", default={})
# Four of the catalogue's models were switched off by their providers; see docs/operations.md.
RETIRE_SWITCHED_OFF = env.bool("RETIRE_SWITCHED_OFF", default=False)
PROVIDER_DOWNLOAD_HOSTS = env.list(
    "PROVIDER_DOWNLOAD_HOSTS",
    default=[
        "oaidalleapiprodscus.blob.core.windows.net",
        "imgen.x.ai",
        "fal.media",  # which the next does not cover: links of fal's older CDN
        "*.fal.media",
    ],
)

# --- Pictures -------------------------------------------------------------------------------

SUPABASE_URL = env.str("SUPABASE_URL", default="").rstrip("/")
SUPABASE_KEY = env.str("SUPABASE_KEY", default="")
SUPABASE_BUCKET = env.str("SUPABASE_BUCKET", default="generated-images")
SUPABASE_PRIVATE_BUCKET = env.str("SUPABASE_PRIVATE_BUCKET", default="private-images")
# How long the address of a private picture works.
SIGNED_URL_SECONDS = env.int("SIGNED_URL_SECONDS", default=3600)
SUPABASE_PUBLIC_URL = env.str("SUPABASE_PUBLIC_URL", default="") or SUPABASE_URL
# The S3 interface instead of the REST one, for those who have its credentials and no secret key.
SUPABASE_S3_KEY_ID = env.str("SUPABASE_S3_KEY_ID", default="")
SUPABASE_S3_SECRET = env.str("SUPABASE_S3_SECRET", default="")
SUPABASE_S3_REGION = env.str("SUPABASE_S3_REGION", default="local")
if bool(SUPABASE_S3_KEY_ID) != bool(SUPABASE_S3_SECRET):
    raise ImproperlyConfigured("SUPABASE_S3_KEY_ID and SUPABASE_S3_SECRET are set together")
if bool(SUPABASE_URL) != bool(SUPABASE_KEY or SUPABASE_S3_KEY_ID):
    raise ImproperlyConfigured("SUPABASE_URL and SUPABASE_KEY are set together or not at all")
# What happens to a picture while the store is away: `release` fails the request and charges
# nothing; `spool` keeps the picture in DATA_DIR and delivers it.
STORAGE_OUTAGE = env.str("STORAGE_OUTAGE", default="release")
if STORAGE_OUTAGE not in ("release", "spool"):
    raise ImproperlyConfigured("STORAGE_OUTAGE is release or spool")
SPOOL_MAX_BYTES = env.int("SPOOL_MAX_BYTES", default=2 * 1024**3)

_places = Places(
    url=SUPABASE_URL,
    key=SUPABASE_KEY,
    public_url=SUPABASE_PUBLIC_URL or PUBLIC_URL,
    s3_key_id=SUPABASE_S3_KEY_ID,
    s3_secret=SUPABASE_S3_SECRET,
    s3_region=SUPABASE_S3_REGION,
    local=DATA_DIR,
)
STORAGES = {
    "images": _places.public(SUPABASE_BUCKET, "images"),
    "private_images": _places.signed(SUPABASE_PRIVATE_BUCKET, "private-images", SIGNED_URL_SECONDS),
    "default": {"BACKEND": "django.core.files.storage.InMemoryStorage"},
    "staticfiles": {
        "BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"
        if DEBUG
        else "whitenoise.storage.CompressedManifestStaticFilesStorage"
    },
}

if SUPABASE_URL:
    # The S3 interface signs its links for the project's own host.
    for _host in sorted({SUPABASE_PUBLIC_URL, SUPABASE_URL}):
        _pictures = urlsplit(_host)
        SECURE_CSP["img-src"].append(f"{_pictures.scheme}://{_pictures.netloc}")

# --- Money ----------------------------------------------------------------------------------


def _micro_usd(name: str, default: str) -> int:
    try:
        return money.from_usd(env.str(name, default=default))
    except ValueError as error:
        raise ImproperlyConfigured(f"{name}: {error}") from error


SIGNUP_BONUS_MICRO = _micro_usd("SIGNUP_BONUS_USD", "2.50")
DEFAULT_CREDIT_LIMIT_MICRO = _micro_usd("DEFAULT_CREDIT_LIMIT_USD", "0")
# How many a person may found on the pages, altogether and within 24 hours.
ORGANIZATIONS_PER_PERSON = env.int("ORGANIZATIONS_PER_PERSON", default=10)
ORGANIZATIONS_PER_DAY = env.int("ORGANIZATIONS_PER_DAY", default=3)

# Without a key billing stays local: pictures are drawn and charged, and nothing is invoiced.
STRIPE_SECRET_KEY = env.str("STRIPE_SECRET_KEY", default="")
STRIPE_API_BASE = env.str("STRIPE_API_BASE", default="https://api.stripe.com").rstrip("/")
STRIPE_METER_EVENTS_BASE = env.str(
    "STRIPE_METER_EVENTS_BASE", default="https://meter-events.stripe.com"
).rstrip("/")
# One secret for each destination, and the old one beside the new while it is rotated.
STRIPE_WEBHOOK_SECRETS = env.list("STRIPE_WEBHOOK_SECRET", default=[])
# Calls a second to meter events, of all workers of this host: 20 in a sandbox, 200 live.
STRIPE_METER_RATE = env.float("STRIPE_METER_RATE", default=0)
# How many items Stripe allows on a subscription; a price without room for one shares the last.
STRIPE_SUBSCRIPTION_ITEMS = env.int("STRIPE_SUBSCRIPTION_ITEMS", default=20)
if STRIPE_SUBSCRIPTION_ITEMS < 1:
    raise ImproperlyConfigured("STRIPE_SUBSCRIPTION_ITEMS is 1 or more")
# How long an unpaid invoice may stay so before requests are refused.
PAYMENT_GRACE_DAYS = env.int("PAYMENT_GRACE_DAYS", default=14)
STRIPE_LIVEMODE = "_live_" in STRIPE_SECRET_KEY
if STRIPE_SECRET_KEY and not STRIPE_SECRET_KEY.startswith(
    ("sk_test_", "sk_live_", "rk_test_", "rk_live_")
):
    raise ImproperlyConfigured("STRIPE_SECRET_KEY begins with sk_ or rk_, then test_ or live_")
if bool(STRIPE_SECRET_KEY) != bool(STRIPE_WEBHOOK_SECRETS):
    raise ImproperlyConfigured("STRIPE_SECRET_KEY and STRIPE_WEBHOOK_SECRET are set together")
# Where Stripe's payment page and portal are; with an emulated Stripe, beside its API.
STRIPE_PAGE_ORIGINS = env.list(
    "STRIPE_PAGE_ORIGINS",
    default=["https://checkout.stripe.com", "https://billing.stripe.com"]
    if STRIPE_API_BASE == "https://api.stripe.com"
    else [STRIPE_API_BASE],
)
if STRIPE_SECRET_KEY:
    # The answer to our form leads there, which a browser holds against the form's page.
    SECURE_CSP["form-action"] += STRIPE_PAGE_ORIGINS

# --- Alerts ---------------------------------------------------------------------------------

# Origins such as http://127.0.0.1:9000 that alerts may be posted to although they are not public.
ALERT_LOCAL_ORIGINS = env.list("ALERT_LOCAL_ORIGINS", default=[])

# --- Logs -----------------------------------------------------------------------------------

LOG_FORMAT = env.str("LOG_FORMAT", default="console" if DEMO else "json")
if LOG_FORMAT not in ("json", "console"):
    raise ImproperlyConfigured("LOG_FORMAT is json or console")
# Prompts are private: the request line carries one only when an operator asks for it.
LOG_PROMPTS = env.bool("LOG_PROMPTS", default=False)

# /metrics answers requests with this Bearer token; none if it is empty.
METRICS_TOKEN = env.str("METRICS_TOKEN", default="")

LOGGING = logs.configured(LOG_FORMAT, level=env.str("LOG_LEVEL", default="INFO"))

REST_FRAMEWORK = {
    "UNAUTHENTICATED_USER": None,
    "DEFAULT_AUTHENTICATION_CLASSES": ["images.api.authentication.ApiKeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": [
        "images.api.permissions.NetworkAllowed",
        "images.api.permissions.NotPaused",
    ],
    "DEFAULT_PARSER_CLASSES": ["images.api.parsers.StrictJsonParser"],
    "DEFAULT_RENDERER_CLASSES": ["images.api.renderers.OrjsonRenderer"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "images.api.renderers.OnlyJson",
    "EXCEPTION_HANDLER": "images.api.errors.exception_handler",
}
