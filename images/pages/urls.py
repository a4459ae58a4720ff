"""The dashboard's pages."""

from django.urls import path

from images.pages import gallery, invoice_line, keys, overview, playground, usage, welcome

urlpatterns = [
    path("dashboard", overview.overview, name="dashboard"),
    path("dashboard/usage", usage.index, name="usage"),
    path("dashboard/usage/export.csv", usage.export, name="usage_export"),
    path("dashboard/usage/<slug:request_id>", usage.detail, name="usage_detail"),
    path("dashboard/welcome", welcome.welcome, name="welcome"),
    path("dashboard/organizations/new", welcome.new_organization, name="organization_new"),
    path("dashboard/keys", keys.index, name="keys"),
    path("dashboard/keys/new", keys.new, name="key_new"),
    path("dashboard/keys/<uuid:key_id>/rotate", keys.rotate, name="key_rotate"),
    path("dashboard/keys/<uuid:key_id>/revoke", keys.revoke, name="key_revoke"),
    path("dashboard/keys/<uuid:key_id>/resume", keys.resume, name="key_resume"),
    path("dashboard/playground", playground.index, name="playground"),
    path("dashboard/playground/draw", playground.draw, name="playground_draw"),
    path("dashboard/playground/results", playground.results, name="playground_results"),
    path("dashboard/playground/code", playground.code, name="playground_code"),
    path("dashboard/gallery", gallery.index, name="gallery"),
    path("dashboard/gallery/zip", gallery.zipped, name="gallery_zip"),
    path("dashboard/gallery/delete", gallery.delete, name="gallery_delete"),
    path("dashboard/gallery/<slug:reference>", gallery.picture, name="gallery_picture"),
    path(
        "dashboard/gallery/<slug:reference>/small.webp",
        gallery.thumbnail,
        name="picture_thumbnail",
    ),
    path(
        "dashboard/billing/invoices/<slug:invoice_id>/lines/<slug:line_id>",
        invoice_line.index,
        name="billing_line",
    ),
    path(
        "dashboard/billing/invoices/<slug:invoice_id>/lines/<slug:line_id>/charges.csv",
        invoice_line.export,
        name="billing_line_csv",
    ),
]
