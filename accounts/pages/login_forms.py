"""Allauth's forms that look for an address without asking its adapter how it is spelled."""

from allauth.account.forms import LoginForm as AllauthLoginForm
from allauth.account.forms import ResetPasswordForm as AllauthResetPasswordForm

from accounts.mailboxes import spelled


class LoginForm(AllauthLoginForm):  # type: ignore[misc] # allauth ships no types
    """Address and password; attempts are counted per spelling, and there is one."""

    def clean_login(self) -> str:
        """Return the one spelling."""
        return spelled(super().clean_login())


class ResetPasswordForm(AllauthResetPasswordForm):  # type: ignore[misc] # allauth ships no types
    """The address; mails are counted per spelling, and sent to the one that there is."""

    def clean_email(self) -> str:
        """Return the one spelling."""
        self.cleaned_data["email"] = spelled(self.cleaned_data["email"])
        email: str = super().clean_email()
        return email
