"""What lets a key be used at all, as DRF's permissions; `images.policies` decides."""

from typing import TYPE_CHECKING, cast

from django.conf import settings
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from accounts.models import ApiKey
from geekhub.lib import addresses
from images.policies import guardrails

if TYPE_CHECKING:  # which loads this module
    from rest_framework.views import APIView


class NetworkAllowed(BasePermission):
    """The key is used from its own networks; raises Blocked, which says what those are."""

    def has_permission(self, request: Request, view: "APIView") -> bool:
        address = addresses.of(request, settings.TRUSTED_PROXIES)
        guardrails.check_network(cast(ApiKey, request.auth), address)
        return True


class NotPaused(BasePermission):
    """The key is not paused; raises Blocked, which says why it is."""

    def has_permission(self, request: Request, view: "APIView") -> bool:
        guardrails.check_paused(cast(ApiKey, request.auth))
        return True
