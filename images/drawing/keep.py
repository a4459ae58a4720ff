"""Store what was drawn, in the format that was asked for."""

import asyncio
import hashlib
import logging

from images.drawing.errors import StoreFailed
from images.drawing.gateway import Gateway
from images.drawing.routing import Candidate
from images.drawing.started import Drawn, Kept, Started
from images.models import Image
from images.pixels.pictures import NotAPicture, Picture, transcode
from images.providers.base import ProviderImage
from images.providers.errors import ProviderError, unavailable
from images.stores import private

log = logging.getLogger(__name__)
SMALL_BYTES = 64 * 1024


async def keep_all(gateway: Gateway, started: Started, drawn: Drawn) -> list[Kept]:
    """Store the pictures side by side.

    When none could be stored, raises StoreFailed, or ProviderError for pixels that are broken.
    """
    results = await asyncio.gather(
        *(
            keep_one(gateway, started, drawn.candidate, index, image)
            for index, image in enumerate(drawn.images)
        ),
        return_exceptions=True,
    )
    for result in results:
        if isinstance(result, BaseException):
            request_id = started.generation.request_id
            log.error("a picture of %s was not kept", request_id, exc_info=result)
    kept = [result for result in results if isinstance(result, Kept)]
    if not kept:
        raise next((one for one in results if isinstance(one, ProviderError)), StoreFailed())
    return kept


async def keep_one(
    gateway: Gateway, started: Started, candidate: Candidate, index: int, image: ProviderImage
) -> Kept:
    """Store one picture in the format asked for; return it with its row, not saved yet."""
    generation = started.generation
    picture, digest = await _finished(started, candidate, image.picture)
    name = f"{generation.organization_id}/{generation.pk}/{index}.{picture.extension}"
    if started.private:
        name = private.PREFIX + name
    until = started.clock.until(least=1.0)
    await gateway.store.asave(name, picture.data, picture.mime_type, until)
    row = Image(
        generation=generation,
        index=index,
        name=name,
        mime_type=picture.mime_type,
        width=picture.width,
        height=picture.height,
        bytes=len(picture.data),
        sha256=digest,
        revised_prompt=image.revised_prompt or "",
    )
    # Asked for before the charge: who cannot be told where a picture is does not pay for it.
    row.link = await gateway.store.alink(name)
    return Kept(row, picture)


async def _finished(
    started: Started, candidate: Candidate, picture: Picture
) -> tuple[Picture, str]:
    """Return a picture in the format asked for, and its digest in hex.

    Raises ProviderError when its pixels are broken.
    """
    asked = started.request
    # The sandbox compresses as it is asked to, whichever the model.
    compressed = candidate.compressed_here and not started.sandbox
    wanted = asked.output_format
    convert = wanted is not None and (compressed or not picture.is_a(wanted))

    def finish() -> tuple[Picture, str]:
        done = picture
        if wanted is not None and convert:
            done = transcode(picture, wanted, asked.output_compression)
        return done, hashlib.sha256(done.data).hexdigest()

    if not convert and len(picture.data) < SMALL_BYTES:
        return finish()
    try:
        return await started.turns.run(finish)
    except NotAPicture as error:
        raise unavailable(charged=True, detail=f"a picture is {error}") from error
