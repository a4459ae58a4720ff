"""Every URL of the public API."""

from django.urls import path, re_path

from images.api import views

urlpatterns = [
    path("v1/images/generations", views.generations),
    path("v1/images/edits", views.edits),
    re_path(
        r"^v1/images/(?P<request_id>req_[0-9a-f]{24})(?:/(?P<index>[0-9]{1,3}))?$",
        views.pictures,
    ),
    path("v1/generation", views.generation),
    path("v1/models", views.models),
    path("v1/models/<path:model_id>", views.model),
    path("v1/credits", views.credits),
    path("v1/usage", views.usage),
]
