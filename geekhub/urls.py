"""The whole URL map. /v1 is served by `images.api.handler`, see geekhub/asgi.py."""

from allauth.account import views as account
from django.conf import settings
from django.urls import include, path
from django.views.generic import RedirectView
from django.views.i18n import set_language

from billing.stripe import webhook
from geekhub import errors, health, metrics, openapi
from geekhub.staff import site
from images.pages import local_pictures as images

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="dashboard")),
    path("health", health.health),
    path("ready", health.ready),
    path("metrics", metrics.metrics),
    path("openapi.json", openapi.document),
    path("login", account.login, name="login"),
    path("logout", account.logout, name="logout"),
    path(
        "signup",
        RedirectView.as_view(pattern_name="account_signup", permanent=True, query_string=True),
    ),
    path("accounts/login/", errors.moved("login", account.login), name="account_login"),
    path("accounts/logout/", errors.moved("logout", account.logout), name="account_logout"),
    path("accounts/", include("allauth.urls")),
    # After those of allauth: its own links lead to them.
    path("login", account.login, name="account_login"),
    path("logout", account.logout, name="account_logout"),
    path("language", set_language, name="set_language"),
    path("", include("images.pages.urls")),
    path("", include("billing.pages.urls")),
    path("", include("accounts.pages.urls")),
    path("staff/", site.site.urls),
    path("billing/webhooks/stripe", webhook.receive, name="stripe_webhook"),
    path(
        f"storage/v1/object/public/{settings.SUPABASE_BUCKET}/<path:name>",
        images.local_picture,
        name="local_picture",
    ),
    path(
        f"storage/v1/object/sign/{settings.SUPABASE_PRIVATE_BUCKET}/<path:name>",
        images.local_private_picture,
    ),
    path("", include("images.api.urls")),
]

handler400 = "geekhub.errors.bad_request"
handler403 = "geekhub.errors.forbidden"
handler404 = "geekhub.errors.not_found"
handler500 = "geekhub.errors.server_error"
