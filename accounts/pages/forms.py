"""The forms of an organization's settings."""

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from accounts.mailboxes import AddressField
from accounts.models import OnRefusal, Organization, Role


class OrganizationForm(forms.Form):
    """A name."""

    name = forms.CharField(
        label=_("Name"),
        max_length=100,
        widget=forms.TextInput(attrs={"autocomplete": "organization"}),
    )


class SettingsForm(OrganizationForm):
    """What an organization decides for all of its keys."""

    keeps_prompts = forms.BooleanField(
        label=_("Keep prompts"),
        required=False,
        help_text=_("If off, each prompt is discarded when its request ends."),
    )
    retention_days = forms.IntegerField(
        label=_("Days images are kept"),
        required=False,
        min_value=1,
        max_value=36500,
        help_text=_("Empty: forever. Older images are deleted; their charges stay in the ledger."),
    )
    prompts_days = forms.IntegerField(
        label=_("Days prompts are kept"),
        required=False,
        min_value=1,
        max_value=36500,
        help_text=_("Empty: forever. Older prompts are deleted; images and charges stay."),
    )
    on_refusal = forms.ChoiceField(
        label=_("When a model refuses a prompt"),
        choices=[
            (OnRefusal.NEXT.value, _("try the next model on the list")),
            (OnRefusal.STOP.value, _("stop and return the refusal")),
        ],
    )

    @classmethod
    def of(cls, organization: Organization, data: Any = None) -> "SettingsForm":
        """Return the form as the organization is set."""
        return cls(data, initial={name: getattr(organization, name) for name in cls.base_fields})


class InviteForm(forms.Form):
    """An address and a role."""

    email = AddressField(label=_("Email"), widget=forms.EmailInput(attrs={"autocomplete": "off"}))
    role = forms.ChoiceField(label=_("Role"), choices=Role.choices, initial=Role.DEVELOPER)

    def __init__(self, *args: Any, may_make_owners: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["role"] = role_field(may_make_owners)


def role_field(may_make_owners: bool) -> forms.ChoiceField:
    """Return the choice of a role; owners are made by owners."""
    roles = [one for one in Role.choices if may_make_owners or one[0] != Role.OWNER.value]
    return forms.ChoiceField(label=_("Role"), choices=roles, initial=Role.DEVELOPER)
