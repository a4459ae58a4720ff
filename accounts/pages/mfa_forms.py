"""Allauth's forms of passkeys, with a label that can be translated: theirs is the field's name."""

from allauth.mfa.webauthn.forms import AddWebAuthnForm, EditWebAuthnForm
from django import forms
from django.utils.translation import gettext_lazy as _


class AddPasskeyForm(AddWebAuthnForm):  # type: ignore[misc] # allauth ships no types
    """What a new key is called; it may have no name yet."""

    name = forms.CharField(label=_("Name"), required=False)


class EditPasskeyForm(EditWebAuthnForm):  # type: ignore[misc] # allauth ships no types
    """What a key is called."""

    name = forms.CharField(label=_("Name"))
