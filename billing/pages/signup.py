"""Signing up: what allauth asks of us. A new person brings an organization, or an invitation."""

import logging
from typing import Any
from urllib.parse import urlsplit

from allauth.account.adapter import DefaultAccountAdapter, get_adapter
from allauth.account.forms import SignupForm as AllauthSignupForm
from allauth.account.models import EmailAddress
from allauth.core import context
from allauth.core.exceptions import ImmediateHttpResponse
from django import forms
from django.conf import settings
from django.contrib import messages
from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _

from accounts import mail, mailboxes, members
from accounts.models import Invitation, User
from billing.spending.onboarding import address_proved, found_organization
from geekhub.lib import addresses

log = logging.getLogger("geekhub.mail")


# Where a mail can be asked for again; of what is not here, what it tells of is done without it.
AGAIN = {
    "account/email/password_reset_key": "account_reset_password",
    "account/email/unknown_account": "account_reset_password",
    "account/email/email_confirmation": "login",
    "account/email/email_confirmation_signup": "login",
    "account/email/account_already_exists": "login",
}


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc] # allauth ships no types
    """Allauth's questions with an answer of ours."""

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        """Let in whoever may, and always who is invited."""
        return settings.OPEN_FOR_SIGNUP or pending_invitation(request) is not None

    def clean_email(self, email: str) -> str:
        """Return the one spelling of an address, also of one that Google or GitHub names."""
        return mailboxes.spelled(email)

    def get_signup_redirect_url(self, request: HttpRequest) -> str:
        """Return the first page of a new person."""
        return reverse("welcome")

    def post_login(self, request: HttpRequest, user: User, **told: Any) -> HttpResponse:
        """Lead a new person to the first page, wherever the sign-up was opened from."""
        if told["signup"]:
            told["redirect_url"] = self.get_signup_redirect_url(request)
        answer: HttpResponse = super().post_login(request, user, **told)
        return answer

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        """Send allauth's mail in the product's name, not the host's.

        When no server takes it, end the page by leading to where it can be asked for again, in
        the same words whether the address is known or not.
        """
        site = {"name": "Geek Hub", "domain": urlsplit(settings.PUBLIC_URL).netloc}
        try:
            super().send_mail(template_prefix, email, {**context, "current_site": site})
        except mail.NOT_SENT as error:
            log.error("mail about %r was not sent: %s", template_prefix, error)
            if template_prefix in AGAIN:
                raise ImmediateHttpResponse(self._again(AGAIN[template_prefix])) from error

    def _again(self, place: str) -> HttpResponse:
        words = _now("The email could not be sent. Try again in a few minutes.")
        if place == "login" and self.request.user.is_authenticated:
            place = "account_email"
        elif place == "login":
            words = _now(
                "The email with your code could not be sent. Log in again in a few minutes "
                "to get a new one."
            )
        messages.error(self.request, words)
        return redirect(place)

    def confirm_email(self, request: HttpRequest, email_address: EmailAddress) -> bool:
        """Mark an address as proved; anyone who has founded an organization gets the bonus then."""
        confirmed: bool = super().confirm_email(request, email_address)
        if confirmed:
            address_proved(email_address.user)
        return confirmed

    def get_client_ip(self, request: HttpRequest) -> str:
        """Return whom limits are counted for; all unknown clients share one place."""
        return addresses.of(request, settings.TRUSTED_PROXIES) or "0.0.0.0"


class SignupForm(AllauthSignupForm):  # type: ignore[misc] # allauth ships no types
    """Address, password, and the organization's name unless an invitation brought the person."""

    organization = forms.CharField(
        label=_("Organization"),
        max_length=100,
        help_text=_("Your company or project. You can rename it later."),
        widget=forms.TextInput(attrs={"autocomplete": "organization"}),
    )
    field_order = ["organization", "email", "password1"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.invitation = pending_invitation(context.request)
        if self.invitation is not None:
            del self.fields["organization"]
            self.fields["email"].initial = self.invitation.email
            self.fields["email"].disabled = True

    def save(self, request: HttpRequest) -> User:
        """Return the new person, with an organization; or nothing of both.

        Whose form was sent twice at once, or whose invitation has just ended, is led to the login.
        """
        try:
            with transaction.atomic():
                user: User = super().save(request)
        except (IntegrityError, members.InvitationOver) as error:
            if isinstance(error, IntegrityError) and not self._has_account():
                raise
            raise ImmediateHttpResponse(redirect("account_login")) from error
        return user

    def _has_account(self) -> bool:
        return User.objects.filter(email__iexact=self.cleaned_data["email"]).exists()

    def custom_signup(self, request: HttpRequest, user: User) -> None:
        """Give the new person a place."""
        if self.invitation is None:
            found_organization(self.cleaned_data["organization"], user)
            return
        members.accept(request.session.pop(members.SESSION), user=user)
        # Only who reads the mail of the address has the link.
        get_adapter().stash_verified_email(request, user.email)


def pending_invitation(request: HttpRequest | None) -> Invitation | None:
    """Return the invitation whose link was opened in this session, if it is still open."""
    token = request.session.get(members.SESSION) if request is not None else None
    if token is None:
        return None
    try:
        return members.find_invitation(token)
    except members.InvitationOver:
        return None
