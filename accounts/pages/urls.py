"""An organization's own pages."""

from django.urls import path

from accounts.pages import views

urlpatterns = [
    path("dashboard/switch", views.switch, name="organization_switch"),
    path("dashboard/settings", views.organization_settings, name="settings"),
    path("dashboard/settings/members", views.organization_members, name="settings_members"),
    path("dashboard/settings/members/leave", views.leave, name="settings_leave"),
    path(
        "dashboard/settings/members/<int:user_id>/role",
        views.member_role,
        name="settings_member_role",
    ),
    path(
        "dashboard/settings/members/<int:user_id>/remove",
        views.member_remove,
        name="settings_member_remove",
    ),
    path(
        "dashboard/settings/members/<int:user_id>/owner",
        views.member_owner,
        name="settings_member_owner",
    ),
    path(
        "dashboard/settings/invitations/<int:invitation_id>/revoke",
        views.invitation_revoke,
        name="settings_invitation_revoke",
    ),
    path("dashboard/settings/audit", views.audit_log, name="settings_audit"),
    path("invitations/<str:token>", views.invitation, name="invitation"),
]
