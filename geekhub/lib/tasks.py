"""What asyncio leaves to each caller."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def to_its_end[T](work: Coroutine[Any, Any, T]) -> T:
    """Return what the work returns; if the caller is cancelled, that waits for the work's end.

    For work whose part in a thread continues even if nobody waits for it.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
