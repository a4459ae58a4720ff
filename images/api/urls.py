"""Every URL of the public API."""

from django.urls import path

from images.api import views

urlpatterns = [
    path("v1/images/generations", views.GenerationsView.as_view()),
    path("v1/generation", views.GenerationView.as_view()),
    path("v1/models", views.ModelsView.as_view()),
    path("v1/models/<path:model_id>", views.ModelView.as_view()),
    path("v1/credits", views.CreditsView.as_view()),
]
