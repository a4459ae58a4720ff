"""The playground: a person draws with several models side by side, as one key of theirs would.

It is the same admit() and complete() as the API's. The key is `accounts.keys.playground`, one for
each person, so that holds, budgets, limits and the fuse apply. Nobody waits: the process draws,
and the page asks the rows how it went, whichever process answers it.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta

import structlog
from django.db.models import Prefetch, QuerySet
from django.utils import timezone

from accounts import keys
from accounts.models import Organization, User
from billing.spending.prices import PriceBook
from images import metrics
from images.catalog.model import ImageModel, Status
from images.catalog.skus import sku_of
from images.drawing import routing, story
from images.drawing.admit import admit
from images.drawing.gateway import Gateway
from images.drawing.place import Place
from images.drawing.repeats import Finished, IdempotencyKeyInUse, Sent
from images.drawing.request import GenerationRequest
from images.drawing.started import Started
from images.models import Generation, Image

log = structlog.get_logger("geekhub.playground")

MAX_MODELS = 9
RECENT = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Offer:
    """A model to choose; `off` tells why it cannot draw live pictures now."""

    model: ImageModel
    price_micro: int
    off: str | None


def offers(gateway: Gateway | None, organization: Organization) -> list[Offer]:
    """Return the models in service that the organization can buy, with what a picture costs it.

    Without a gateway, as under WSGI, all count as able to draw.
    """
    rows = [row for row in routing.listing() if row.status != Status.RETIRED]
    book = gateway.prices if gateway is not None else PriceBook()
    quotes = book.offered(map(sku_of, rows), organization.pk)
    return [
        Offer(
            row,
            quotes[sku_of(row)].unit_micro,
            gateway.why_off(row, sandbox=False, caller="") if gateway is not None else None,
        )
        for row in rows
        if sku_of(row) in quotes
    ]


def sizes() -> list[str]:
    """Return the sizes that every model can be asked for."""
    rows = [row for row in routing.listing() if row.status != Status.RETIRED]
    return [size for size in rows[0].sizes if all(size in row.sizes for row in rows)]


def start(
    gateway: Gateway,
    organization: Organization,
    person: User,
    request: GenerationRequest,
    *,
    sandbox: bool,
    run: str,
) -> Generation:
    """Let a request of one model in, and have it drawn; return its row, most likely running.

    `run` names one press of the button: sent twice, it draws and costs once. Raises KeyRefused, and
    what admit() raises; then nothing is drawn.
    """
    key = keys.playground(organization, person, sandbox=sandbox)
    sent = Sent(idempotency_key=f"playground:{person.pk}:{run}:{request.models[0]}")
    place = Place(gateway, sent.request_id)
    with ExitStack() as held:
        held.callback(place.leave)
        try:
            begun = admit(gateway, key, request, sent, place)
        except IdempotencyKeyInUse:
            # The newest: it may have failed since.
            pressed = Generation.objects.filter(organization=organization, sandbox=sandbox)
            return pressed.filter(idempotency_key=sent.idempotency_key).latest("created_at")
        assert isinstance(begun, Started | Finished), "nobody asked for the price alone"
        if isinstance(begun, Started):
            # The place is given back when it is drawn.
            held.pop_all()
            gateway.start(_draw(gateway, begun, place))
    return begun.generation


async def _draw(gateway: Gateway, started: Started, place: Place) -> None:
    try:
        row = (await story.complete(gateway, started)).generation
    except Exception:
        # complete() has written it into the row, where the page finds it.
        pass
    else:
        metrics.IMAGES.labels(row.model).inc(row.delivered)
    finally:
        row = started.generation
        await place.aleave()
        log.info(
            "drawn",
            request_id=row.request_id,
            organization=str(row.organization_id),
            model=row.model or row.requested[0],
            status=str(row.status),
            error=row.error_code,
            images=row.delivered,
        )


def latest(organization: Organization, person: User) -> QuerySet[Generation]:
    """Return what the person drew on the page within a day, newest first: at most one full run."""
    mine = organization.api_keys.filter(playground=True, created_by=person).values_list("pk")
    return _told(organization).filter(
        api_key__in=list(mine), created_at__gte=timezone.now() - RECENT
    )[:MAX_MODELS]


def results(organization: Organization, request_ids: list[str]) -> QuerySet[Generation]:
    """Return these requests of the organization, newest first."""
    return _told(organization).filter(request_id__in=request_ids)


def _told(organization: Organization) -> QuerySet[Generation]:
    return (
        Generation.objects.filter(organization=organization)
        .prefetch_related(Prefetch("images", Image.objects.filter(deleted_at=None)))
        .order_by("-created_at", "-request_id")
    )
