"""Rows for tests, made through the services that make them in production where those have rules."""

from typing import Any

import factory

from accounts import keys, members
from accounts.models import ApiKey, Organization, User
from billing.spending import ledger
from geekhub.lib import money


class UserFactory(factory.django.DjangoModelFactory[User]):
    """A person; `password` is set."""

    class Meta:
        model = User

    email = factory.Sequence(lambda number: f"person{number}@example.com")
    password = "correct horse battery"

    @classmethod
    def _create(cls, model_class: type[User], *args: Any, **kwargs: Any) -> User:
        return model_class.objects.create_user(**kwargs)


class OrganizationFactory(factory.django.DjangoModelFactory[Organization]):
    """An organization with an owner and an account; `bonus` and `credit_limit` are USD."""

    class Meta:
        model = Organization

    name = factory.Sequence(lambda number: f"Organization {number}")
    owner = factory.SubFactory(UserFactory)
    bonus = "10"
    credit_limit = "0"

    @classmethod
    def _create(cls, model_class: type[Organization], *args: Any, **kwargs: Any) -> Organization:
        bonus, limit = (money.from_usd(kwargs.pop(name)) for name in ("bonus", "credit_limit"))
        organization = members.found(kwargs.pop("name"), owner=kwargs.pop("owner"))
        for name, value in kwargs.items():
            setattr(organization, name, value)
        organization.save()
        ledger.open_account(organization, bonus_micro=bonus, credit_limit_micro=limit)
        return organization


class KeyFactory(factory.Factory[keys.NewKey]):
    """A key with its secret; `sandbox=True` for a test key."""

    class Meta:
        model = ApiKey

    organization = factory.SubFactory(OrganizationFactory)
    name = "prod-web"

    @classmethod
    def _create(cls, model_class: type[ApiKey], *args: Any, **kwargs: Any) -> keys.NewKey:
        return keys.create(kwargs.pop("organization"), kwargs.pop("name"), **kwargs)
