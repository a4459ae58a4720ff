"""Members of staff, with a second factor and without."""

from allauth.mfa.totp.internal.auth import TOTP, generate_totp_secret

from accounts.models import User
from tests.factories import UserFactory


def staff(*, factor: bool = True, superuser: bool = False) -> User:
    """Return a new member of staff, who belongs to no organization."""
    user: User = UserFactory(is_staff=True, is_superuser=superuser)
    if factor:
        TOTP.activate(user, generate_totp_secret())
    return user
