"""complete(): draw, keep and charge, in this order, or end the request without a charge."""

import logging
from functools import partial

from django.db import Error as DatabaseTrouble

from billing.spending import holds
from images.drawing.charge import capture, close, committed, fail
from images.drawing.draw import first_that_delivers, listen_to_none
from images.drawing.errors import AllCandidatesFailed, OutcomeUnknown, StoreFailed
from images.drawing.gateway import Gateway
from images.drawing.keep import keep_all
from images.drawing.repeats import Finished
from images.drawing.started import Started
from images.drawing.stream import Listener, Stream, deliver
from images.models import Generation, GenerationStatus
from images.providers.errors import ProviderError

log = logging.getLogger(__name__)


async def complete(
    gateway: Gateway, started: Started, listener: Listener | None = None
) -> Finished:
    """Draw, keep and charge; with a listener, picture by picture as they come.

    Raises ProviderError, AllCandidatesFailed, StoreFailed or HoldLost, and nothing is charged then,
    or OutcomeUnknown. Whatever broke: what the database has as delivered is returned. The caller
    must not be cancelled: it runs this to the end whether or not anybody still listens.
    """
    stream = None if listener is None else Stream(listener)
    kept = [] if stream is None else stream.kept
    try:
        if stream is None:
            drawn = await first_that_delivers(gateway, started, listen_to_none)
            kept += await keep_all(gateway, started, drawn)
            row = await committed(gateway, capture, started, drawn, kept)
        else:
            drawn = await first_that_delivers(
                gateway, started, partial(deliver, gateway, started, stream)
            )
            if not kept:
                raise StoreFailed
            row = await committed(gateway, close, started, drawn, kept)
    except Exception as error:
        row = started.generation = await _ended(gateway, started, error)
        if row.status != GenerationStatus.SUCCEEDED:
            if isinstance(error, DatabaseTrouble):
                raise StoreFailed from error
            raise
        if stream is not None:
            await stream.tell(row)
    started.generation = row
    del kept[row.delivered :]
    return Finished(row, [one.row for one in kept], [one.picture.data for one in kept])


async def _ended(gateway: Gateway, started: Started, error: Exception) -> Generation:
    """Return the row of a request that broke, ended; raises OutcomeUnknown, or what it broke on.

    The latter if the database cannot be asked, but there was nothing to charge.
    """
    request_id = started.generation.request_id
    before_charging = isinstance(error, (ProviderError, AllCandidatesFailed, StoreFailed))
    if not before_charging:
        log.error("request %s failed", request_id, exc_info=error)
    try:
        return await committed(gateway, fail, started, error)
    except (DatabaseTrouble, holds.HoldLost) as trouble:
        log.exception("request %s is settled when its lease is over", request_id)
        if before_charging:
            raise error from trouble
        raise OutcomeUnknown(request_id) from error
