"""The pages of an organization: its settings, its members, its audit log, and the way in."""

from collections.abc import Callable

from django.conf import settings
from django.contrib import messages
from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from accounts import mail, members
from accounts.access import SESSION, MemberRequest, Permission, denied, member, memberships
from accounts.mailboxes import as_kept
from accounts.models import AuditEvent, Invitation, Membership, Role, User
from accounts.pages.audit_words import Told
from accounts.pages.forms import InviteForm, SettingsForm

AUDIT_PAGE = 50


@require_POST
@member(Permission.VIEW)
def switch(request: MemberRequest) -> HttpResponse:
    """Make another of the person's organizations the session's."""
    slug = request.POST.get("organization", "")
    for one in memberships(request.access.user):
        if one.organization.slug == slug:
            request.session[SESSION] = str(one.organization_id)
            return redirect(_next(request))
    raise Http404


def _next(request: HttpRequest) -> str:
    target = request.POST.get("next", "")
    if url_has_allowed_host_and_scheme(target, {request.get_host()}, request.is_secure()):
        return target
    return reverse("dashboard")


@require_http_methods(["GET", "HEAD", "POST"])
@member(Permission.VIEW)
def organization_settings(request: MemberRequest) -> HttpResponse:
    """Show the settings; members with the permission can change them."""
    access = request.access
    form = SettingsForm.of(access.organization, request.POST or None)
    if request.method == "POST":
        if not access.may(Permission.MANAGE_ORGANIZATION):
            return denied(request, Permission.MANAGE_ORGANIZATION)
        if form.is_valid():
            members.change_settings(access.organization, actor=access.user, **form.cleaned_data)
            messages.success(request, _("Settings saved."))
            return redirect("settings")
    if not access.may(Permission.MANAGE_ORGANIZATION):
        for field in form.fields.values():
            field.disabled = True
    return render(request, "accounts/settings.html", {"form": form})


# --- Members ----------------------------------------------------------------------------------


@require_http_methods(["GET", "HEAD", "POST"])
@member(Permission.VIEW)
def organization_members(request: MemberRequest) -> HttpResponse:
    """Show members and open invitations; a POST invites."""
    access = request.access
    form = InviteForm(request.POST or None, may_make_owners=access.role == Role.OWNER)
    link = None
    if request.method == "POST":
        if not access.may(Permission.MANAGE_MEMBERS):
            return denied(request, Permission.MANAGE_MEMBERS)
        if form.is_valid():
            email, role = form.cleaned_data["email"], Role(form.cleaned_data["role"])
            try:
                new = members.invite(access.organization, email, role, actor=access.user)
            except members.MembersError as error:
                form.add_error(None, str(error))
            else:
                link = request.build_absolute_uri(reverse("invitation", args=[new.token]))
                sent = settings.SENDS_MAIL and _send(new.row, link)
                if sent:
                    messages.success(request, _("Invitation sent to %s.") % email)
                    return redirect("settings_members")
                form = InviteForm(may_make_owners=access.role == Role.OWNER)
    # The link is shown once, to the inviter, if no email is sent.
    return render(
        request,
        "accounts/members.html",
        {
            "form": form,
            "link": link,
            "members": access.organization.memberships.select_related("user").order_by(
                "created_at"
            ),
            "invitations": members.open_invitations(access.organization),
            "roles": [one for one in Role if access.role == Role.OWNER or one != Role.OWNER],
            "days": members.INVITATION_DAYS,
        },
    )


def _send(invitation: Invitation, link: str) -> bool:
    subject = _("Invitation to join %s on Geek Hub") % invitation.organization.name
    return mail.send(
        [invitation.email], subject, "invitation", {"invitation": invitation, "link": link}
    )


def _do(
    request: MemberRequest, done: str, change: Callable[[], None], then: str = "settings_members"
) -> HttpResponse:
    """Do it and say so, or say why not."""
    try:
        change()
    except members.MembersError as error:
        messages.error(request, str(error))
        return redirect("settings_members")
    messages.success(request, done)
    return redirect(then)


def _member(request: MemberRequest, user_id: int) -> User:
    found = Membership.objects.filter(organization=request.access.organization)
    return get_object_or_404(found.select_related("user"), user_id=user_id).user


@require_POST
@member(Permission.MANAGE_MEMBERS)
def member_role(request: MemberRequest, user_id: int) -> HttpResponse:
    """Give a member another role."""
    access, user = request.access, _member(request, user_id)
    role = request.POST.get("role", "")
    if role not in Role.values:
        raise Http404
    return _do(
        request,
        _("Role of %s updated.") % user.email,
        lambda: members.change_role(access.organization, user, Role(role), actor=access.user),
    )


@require_POST
@member(Permission.MANAGE_MEMBERS)
def member_remove(request: MemberRequest, user_id: int) -> HttpResponse:
    """End somebody's membership."""
    access, user = request.access, _member(request, user_id)
    return _do(
        request,
        _("%s was removed from the organization.") % user.email,
        lambda: members.remove(access.organization, user, actor=access.user),
    )


@require_POST
@member(Permission.MANAGE_MEMBERS)
def member_owner(request: MemberRequest, user_id: int) -> HttpResponse:
    """Transfer ownership of the organization."""
    access, user = request.access, _member(request, user_id)
    return _do(
        request,
        _("%s is now the owner; you are an admin.") % user.email,
        lambda: members.hand_over(access.organization, user, actor=access.user),
    )


@require_POST
@member(Permission.VIEW)
def leave(request: MemberRequest) -> HttpResponse:
    """End one's own membership."""
    access = request.access
    return _do(
        request,
        _("You left %s.") % access.organization.name,
        lambda: members.leave(access.organization, access.user),
        then="dashboard",
    )


@require_POST
@member(Permission.MANAGE_MEMBERS)
def invitation_revoke(request: MemberRequest, invitation_id: int) -> HttpResponse:
    """Withdraw an invitation."""
    access = request.access
    found = get_object_or_404(access.organization.invitations, pk=invitation_id)
    return _do(
        request,
        _("Invitation for %s withdrawn.") % found.email,
        lambda: members.revoke_invitation(found, actor=access.user),
    )


@require_http_methods(["GET", "HEAD", "POST"])
def invitation(request: HttpRequest, token: str) -> HttpResponse:
    """Show an invitation, and accept it for the person logged in with its address."""
    try:
        found = members.find_invitation(token)
        if request.method == "POST" and isinstance(request.user, User):
            accepted = members.accept(token, user=request.user)
            request.session.pop(members.SESSION, None)
            request.session[SESSION] = str(accepted.organization_id)
            messages.success(request, _("Welcome to %s!") % accepted.organization.name)
            return redirect("dashboard")
    except members.MembersError as error:
        over = isinstance(error, members.InvitationOver)
        context = {"error": str(error)}
        return render(request, "accounts/invitation.html", context, status=410 if over else 409)
    if not request.user.is_authenticated:
        request.session[members.SESSION] = token
    mine = isinstance(request.user, User) and as_kept(request.user.email) == as_kept(found.email)
    shown = {"invitation": found, "mine": mine}
    return render(request, "accounts/invitation.html", shown)


# --- The audit log ----------------------------------------------------------------------------


@require_safe
@member(Permission.VIEW_AUDIT)
def audit_log(request: MemberRequest) -> HttpResponse:
    """Show who did what, when, from where."""
    events = AuditEvent.objects.filter(organization=request.access.organization)
    page = Paginator(events.select_related("actor").order_by("-created_at", "-pk"), AUDIT_PAGE)
    shown = page.get_page(request.GET.get("page"))
    context = {"page": shown, "rows": [Told(event) for event in shown]}
    return render(request, "accounts/audit.html", context)
