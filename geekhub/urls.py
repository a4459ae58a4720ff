"""The whole URL map. /v1 is served by `images.api.handler`, see geekhub/asgi.py."""

from django.conf import settings
from django.contrib.auth import views as auth
from django.urls import include, path
from django.views.generic import RedirectView

from billing import webhooks
from geekhub import health, metrics
from images import views as images

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="dashboard")),
    path("health", health.health),
    path("ready", health.ready),
    path("metrics", metrics.metrics),
    path("billing/webhooks/stripe", webhooks.receive, name="stripe_webhook"),
    path("login", auth.LoginView.as_view(template_name="accounts/login.html"), name="login"),
    path("logout", auth.LogoutView.as_view(), name="logout"),
    path("dashboard", images.overview, name="dashboard"),
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
