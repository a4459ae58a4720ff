"""A thousand requests at once against a provider that takes five seconds, on two workers."""

import asyncio
import os
import time

import aiohttp

from benchmarks.gateway import Gateway, core_ms, gateway, openai

IN_FLIGHT = 1000
PROVIDER_SECONDS = 5.0


async def burst(served: Gateway) -> tuple[list[int], float]:
    """Return the statuses of all requests and the seconds until the last answer."""
    headers = {"Authorization": f"Bearer {served.key}"}
    body = {"model": "openai/gpt-image-1", "prompt": "a red kite"}
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(
        served.origin, connector=connector, headers=headers, timeout=timeout
    ) as session:

        async def draw() -> int:
            async with session.post("/v1/images/generations", json=body) as answer:
                await answer.read()
                return answer.status

        began = time.monotonic()
        statuses = await asyncio.gather(*(draw() for _ in range(IN_FLIGHT)))
        return list(statuses), time.monotonic() - began


def main() -> None:
    """Print one row of the table in benchmarks/README.md."""
    database = os.environ["DATABASE_URL"].partition(":")[0]
    with openai(delay=PROVIDER_SECONDS) as upstream, gateway(upstream, workers=2) as served:
        cpu = served.cpu_seconds()
        statuses, seconds = asyncio.run(burst(served))
        cpu = served.cpu_seconds() - cpu
        memory = served.memory_bytes()
    good = statuses.count(200)
    print(
        "| database | in flight | succeeded | seconds | times the provider | CPU ms each | MB "
        "| core, ms |"
    )
    print(
        f"| {database} | {IN_FLIGHT} | {good} | {seconds:.1f} | {seconds / PROVIDER_SECONDS:.2f} "
        f"| {cpu / IN_FLIGHT * 1000:.1f} | {memory / 1e6:.0f} | {core_ms():.0f} |"
    )


if __name__ == "__main__":
    main()
