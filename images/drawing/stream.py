"""Pictures one by one as they come, each kept and charged before anybody hears of it."""

import logging
from dataclasses import dataclass, field
from typing import Protocol

from geekhub.lib.tasks import to_its_end
from images.drawing.charge import capture_one, committed
from images.drawing.gateway import Gateway
from images.drawing.keep import keep_one
from images.drawing.routing import Candidate
from images.drawing.started import Kept, Started
from images.models import Generation, Image
from images.pixels.pictures import Picture
from images.providers.base import PartialImage, ProviderImage

log = logging.getLogger(__name__)


class Listener(Protocol):
    """Hears of pictures as they come; what it raises or how long it takes is its caller's loss."""

    async def partial(self, picture: Picture, index: int) -> None:
        """An early view of a picture."""

    async def completed(self, image: Image, picture: Picture, model: str) -> None:
        """A picture that is kept and charged."""


@dataclass(slots=True)
class Stream:
    """The pictures of a stream, kept in order; of the first `told` the listener has heard."""

    listener: Listener
    kept: list[Kept] = field(default_factory=list)
    told: int = 0

    async def tell(self, row: Generation) -> None:
        """Let the listener hear of each picture that the row counts."""
        for one in self.kept[self.told : row.delivered]:
            self.told += 1
            try:
                await self.listener.completed(one.row, one.picture, row.model)
            except Exception:
                # It is charged, whether or not its listener could be told.
                log.exception("a picture of %s was not told", row.request_id)


async def deliver(
    gateway: Gateway,
    started: Started,
    stream: Stream,
    candidate: Candidate,
    item: ProviderImage | PartialImage,
) -> None:
    """Keep and charge one picture, then tell the listener of it."""
    if isinstance(item, PartialImage):
        await stream.listener.partial(item.picture, item.index)
        return
    try:
        one = await keep_one(gateway, started, candidate, len(stream.kept), item)
    except Exception:
        log.exception("a picture of %s was not kept", started.generation.request_id)
        return

    async def charge() -> None:
        stream.kept.append(one)
        started.generation = await committed(gateway, capture_one, started, candidate, one)
        await stream.tell(started.generation)

    # The deadline may come while the database is at it: what is charged must be told.
    await to_its_end(charge())
