"""CPU time of our process for one upload of 1.5 MB to Supabase Storage.

    python -m benchmarks.storage_upload [--uploads 400] [--concurrency 32]

The emulator runs in a process of its own, so that its work is not counted. Prints one row of a
table; exits 1 when an upload costs more than the 3 ms that are allowed.
"""

import argparse
import asyncio
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection
from uuid import uuid4

import uvloop

from images.stores.supabase import SupabaseStorage
from tests.emulators.supabase import SupabaseEmulator

SIZE = 1_500_000
ALLOWED_MS = 3.0


def _serve(pipe: Connection) -> None:
    """Run an emulator until the other end of the pipe says something; then say what it got."""
    with SupabaseEmulator() as emulator:
        pipe.send((emulator.url, emulator.secret_key, emulator.bucket))
        pipe.recv()
        pipe.send(len(emulator.objects))


async def _upload(store: SupabaseStorage, uploads: int, concurrency: int) -> tuple[float, float]:
    """Return the seconds of CPU and of the clock that `uploads` uploads took."""
    picture = os.urandom(SIZE)
    free = asyncio.Semaphore(concurrency)

    async def one() -> None:
        async with free:
            await store.asave(f"{uuid4()}/{uuid4()}/0.png", picture, "image/png")

    # Not counted: the imports and the connections of the first round.
    await asyncio.gather(*(one() for _ in range(concurrency)))
    cpu, clock = time.process_time(), time.perf_counter()
    await asyncio.gather(*(one() for _ in range(uploads)))
    result = time.process_time() - cpu, time.perf_counter() - clock
    await store.aclose()
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description="CPU time per upload of 1.5 MB")
    parser.add_argument("--uploads", type=int, default=400)
    parser.add_argument("--concurrency", type=int, default=32)
    options = parser.parse_args()
    processes = multiprocessing.get_context("spawn")
    pipe, far = processes.Pipe()
    server = processes.Process(target=_serve, args=(far,), daemon=True)
    server.start()
    url, key, bucket = pipe.recv()
    store = SupabaseStorage(url=url, key=key, bucket=bucket)
    # The loop the service runs on.
    cpu, clock = uvloop.run(_upload(store, options.uploads, options.concurrency))
    pipe.send("stop")
    stored = pipe.recv()
    server.join()
    if stored != options.uploads + options.concurrency:
        print(f"only {stored} uploads arrived", file=sys.stderr)
        return 1
    milliseconds = cpu / options.uploads * 1000
    print("| uploads of 1.5 MB | at once | CPU ms per upload | allowed | uploads per second |")
    print("| --- | --- | --- | --- | --- |")
    print(
        f"| {options.uploads} | {options.concurrency} | {milliseconds:.2f} | {ALLOWED_MS:.0f} "
        f"| {options.uploads / clock:.0f} |"
    )
    return 0 if milliseconds <= ALLOWED_MS else 1


if __name__ == "__main__":
    sys.exit(main())
