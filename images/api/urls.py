"""Every URL of the public API."""

from django.urls import path, re_path

from images.api import views

urlpatterns = [
    path("v1/images/generations", views.GenerationsView.as_view()),
    path("v1/images/edits", views.EditsView.as_view()),
    re_path(
        r"^v1/images/(?P<request_id>req_[0-9a-f]{24})(?:/(?P<index>[0-9]{1,3}))?$",
        views.PicturesView.as_view(),
    ),
    path("v1/generation", views.GenerationView.as_view()),
    path("v1/models", views.ModelsView.as_view()),
    path("v1/models/<path:model_id>", views.ModelView.as_view()),
    path("v1/credits", views.CreditsView.as_view()),
    path("v1/usage", views.UsageView.as_view()),
]
