"""Who: people, the organizations they belong to, and the API keys those own."""

import uuid
from typing import Any, ClassVar

from django.contrib.auth.models import AbstractBaseUser, BaseUserManager, PermissionsMixin
from django.db import models
from django.db.models.functions import Lower, Now
from django.utils.translation import gettext_lazy as _

from accounts import mailboxes

# Of a key, and of a request; the rollups have room for a tag of this length.
MAX_TAGS, MAX_TAG = 8, 40


class UserManager(BaseUserManager["User"]):
    """Makes users whose name is their e-mail address."""

    def create_user(self, email: str, password: str | None = None, **fields: Any) -> "User":
        """Return a new user; without a password they can only log in after a reset."""
        user = self.model(email=self.normalize_email(email), **fields)
        user.set_password(password)
        user.save()
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> "User":
        """Return a new member of staff with every permission."""
        return self.create_user(email, password, is_staff=True, is_superuser=True, **fields)

    @classmethod
    def normalize_email(cls, email: str | None) -> str:
        """Return the one spelling; raises ValidationError."""
        return mailboxes.spelled(email or "")

    def get_by_natural_key(self, username: str | None) -> "User":
        """Return the user of an address, however it is spelled."""
        return self.get(email__iexact=mailboxes.as_kept(username or ""))


class User(AbstractBaseUser, PermissionsMixin):
    """A person."""

    email = models.EmailField(_("email"), unique=True)
    name = models.CharField(_("name"), max_length=150, blank=True)
    is_active = models.BooleanField(_("active"), default=True)
    is_staff = models.BooleanField(_("staff"), default=False)
    created_at = models.DateTimeField(_("created at"), db_default=Now())

    objects: ClassVar[UserManager] = UserManager()

    USERNAME_FIELD = "email"

    class Meta:
        verbose_name = _("person")
        verbose_name_plural = _("people")
        constraints = [models.UniqueConstraint(Lower("email"), name="user_email_any_case")]

    def __str__(self) -> str:
        return self.email


class OnRefusal(models.TextChoices):
    """What a list of models does when one refuses the prompt or the image."""

    NEXT = "next", _("Next")
    STOP = "stop", _("Stop")


class Organization(models.Model):
    """A customer: it owns keys, pictures and a balance."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(_("name"), max_length=100)
    slug = models.SlugField(_("short name"), max_length=60, unique=True)
    keeps_prompts = models.BooleanField(
        _("keep prompts"),
        default=True,
        help_text=_("Whether prompts are stored with their requests."),
    )
    rate_limit_rpm = models.PositiveIntegerField(
        _("requests per minute, per key"),
        null=True,
        blank=True,
        help_text=_("Requests per minute per key; empty means the default."),
    )
    max_in_flight = models.PositiveIntegerField(
        _("concurrent requests"),
        null=True,
        blank=True,
        help_text=_("Concurrent requests; empty means the default."),
    )
    on_refusal = models.CharField(
        _("when a model refuses a prompt"), max_length=4, choices=OnRefusal, default=OnRefusal.NEXT
    )
    retention_days = models.PositiveIntegerField(
        _("days images are kept"),
        null=True,
        blank=True,
        help_text=_("Days an image is kept; empty means forever."),
    )
    prompts_days = models.PositiveIntegerField(
        _("days prompts are kept"),
        null=True,
        blank=True,
        help_text=_("Days a prompt is kept; empty means forever."),
    )
    created_at = models.DateTimeField(_("created at"), db_default=Now())
    members = models.ManyToManyField(
        User, verbose_name=_("members"), through="Membership", related_name="organizations"
    )

    class Meta:
        verbose_name = _("organization")
        verbose_name_plural = _("organizations")
        constraints = [
            models.CheckConstraint(condition=~models.Q(name=""), name="organization_has_a_name")
        ]

    def __str__(self) -> str:
        return self.name


class Role(models.TextChoices):
    """What a member may do; `accounts.access.MAY` says what that is."""

    OWNER = "owner", _("Owner")
    ADMIN = "admin", _("Admin")
    DEVELOPER = "developer", _("Developer")
    BILLING = "billing", _("Billing")
    VIEWER = "viewer", _("Viewer")


class Membership(models.Model):
    """One person in one organization."""

    organization = models.ForeignKey(
        Organization, on_delete=models.CASCADE, related_name="memberships"
    )
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role, default=Role.DEVELOPER)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        verbose_name = _("membership")
        verbose_name_plural = _("memberships")
        constraints = [
            models.UniqueConstraint(fields=["organization", "user"], name="one_membership_each"),
            models.CheckConstraint(
                condition=models.Q(role__in=Role.values), name="membership_role_is_known"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.user} is {self.role} of {self.organization}"


class ApiKey(models.Model):
    """A secret that draws in the name of an organization; only its digest is stored."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    organization = models.ForeignKey(
        Organization,
        verbose_name=_("organization"),
        on_delete=models.PROTECT,
        related_name="api_keys",
    )
    name = models.CharField(_("name"), max_length=100)
    prefix = models.CharField(_("prefix"), max_length=21, unique=True)
    digest = models.CharField(max_length=64, unique=True)
    sandbox = models.BooleanField(_("sandbox"), default=False)
    private = models.BooleanField(
        _("private images"),
        default=False,
        help_text=_("Its images can be opened only through signed URLs that expire."),
    )
    playground = models.BooleanField(
        _("playground"),
        default=False,
        help_text=_("Used by its creator's playground."),
    )
    allowed_models = models.JSONField(
        _("allowed models"),
        null=True,
        blank=True,
        help_text=_("Model ids the key can use; empty means all."),
    )
    on_refusal = models.CharField(
        _("when a model refuses a prompt"),
        max_length=4,
        choices=OnRefusal,
        blank=True,
        help_text=_("Empty: the organization's."),
    )
    created_by = models.ForeignKey(
        User,
        verbose_name=_("created by"),
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
    )
    created_at = models.DateTimeField(_("created at"), db_default=Now())
    expires_at = models.DateTimeField(_("expires at"), null=True, blank=True)
    revoked_at = models.DateTimeField(_("revoked at"), null=True, blank=True)
    last_used_at = models.DateTimeField(_("last used at"), null=True, blank=True)
    allowed_ips = models.JSONField(
        _("allowed IP ranges"),
        default=list,
        blank=True,
        help_text=_("Networks it can be used from; empty means anywhere."),
    )
    tags = models.JSONField(
        _("tags"), default=list, blank=True, help_text=_("The customer's own labels.")
    )
    paused_at = models.DateTimeField(_("paused at"), null=True, blank=True)
    paused_reason = models.CharField(_("paused reason"), max_length=300, blank=True)
    resumed_at = models.DateTimeField(
        _("resumed at"),
        null=True,
        blank=True,
        help_text=_("Spending before this time does not pause it again."),
    )
    family = models.UUIDField(
        _("family"),
        default=uuid.uuid4,
        editable=False,
        help_text=_("Shared by a key and its rotations."),
    )
    rotated_from = models.OneToOneField(
        "self",
        verbose_name=_("rotated from"),
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="rotated_to",
    )

    class Meta:
        verbose_name = _("API key")
        verbose_name_plural = _("API keys")
        constraints = [
            models.CheckConstraint(condition=~models.Q(name=""), name="api_key_has_a_name"),
            models.CheckConstraint(
                condition=models.Q(sandbox=True, prefix__startswith="ghub_sk_test_")
                | models.Q(sandbox=False, prefix__startswith="ghub_sk_live_"),
                name="api_key_prefix_tells_sandbox",
            ),
            models.UniqueConstraint(
                fields=["organization", "created_by", "sandbox"],
                condition=models.Q(playground=True, revoked_at=None),
                name="one_playground_key_each",
            ),
        ]
        indexes = [models.Index(fields=["organization", "-created_at"], name="keys_of_one")]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"


class Invitation(models.Model):
    """An open door for one address; only a digest of its token is stored.

    It works once, until `expires_at`, unless it was revoked.
    """

    organization = models.ForeignKey(
        Organization, on_delete=models.CASCADE, related_name="invitations"
    )
    email = models.EmailField()
    role = models.CharField(max_length=10, choices=Role)
    digest = models.CharField(max_length=64, unique=True)
    invited_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(db_default=Now())
    expires_at = models.DateTimeField()
    accepted_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name = _("invitation")
        verbose_name_plural = _("invitations")
        constraints = [
            models.UniqueConstraint(
                "organization",
                Lower("email"),
                condition=models.Q(accepted_at=None, revoked_at=None),
                name="one_open_invitation_each",
            ),
            models.CheckConstraint(
                condition=models.Q(role__in=Role.values), name="invitation_role_is_known"
            ),
            models.CheckConstraint(
                condition=models.Q(accepted_at=None) | models.Q(revoked_at=None),
                name="invitation_ends_once",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.email} to {self.organization}"


class AuditEvent(models.Model):
    """Who did what, when, from where; it outlives what it names."""

    organization = models.ForeignKey(
        Organization,
        verbose_name=_("organization"),
        null=True,
        on_delete=models.SET_NULL,
        related_name="audit_events",
    )
    actor = models.ForeignKey(
        User, verbose_name=_("actor"), null=True, on_delete=models.SET_NULL, related_name="+"
    )
    action = models.CharField(_("action"), max_length=60)
    subject = models.CharField(_("subject"), max_length=200, blank=True)
    details = models.JSONField(_("details"), default=dict)
    ip = models.GenericIPAddressField(
        _("IP address"), null=True, help_text=_("Empty: a command, or unknown.")
    )
    created_at = models.DateTimeField(_("created at"), db_default=Now())

    class Meta:
        verbose_name = _("event of the audit log")
        verbose_name_plural = _("events of the audit log")
        indexes = [models.Index(fields=["organization", "-created_at"], name="audit_of_one")]

    def __str__(self) -> str:
        return f"{self.action} {self.subject}"
