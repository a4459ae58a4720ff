"""Our CPU per request, one at a time, with a provider that answers at once."""

import os
import time

import httpx

from benchmarks.gateway import core_ms, gateway, openai

WARM_UP = 100
REQUESTS = 500


def main() -> None:
    """Print one row of the table in benchmarks/README.md."""
    database = os.environ["DATABASE_URL"].partition(":")[0]
    with openai(delay=0) as upstream, gateway(upstream, workers=1) as served:
        headers = {"Authorization": f"Bearer {served.key}"}
        with httpx.Client(base_url=served.origin, headers=headers) as client:

            def draw() -> None:
                body = {"model": "openai/gpt-image-1", "prompt": "a red kite"}
                client.post("/v1/images/generations", json=body).raise_for_status()

            for _ in range(WARM_UP):
                draw()
            cpu, wall = served.cpu_seconds(), time.monotonic()
            for _ in range(REQUESTS):
                draw()
            cpu, wall = served.cpu_seconds() - cpu, time.monotonic() - wall
    each, slow = cpu / REQUESTS * 1000, wall / REQUESTS * 1000
    print("| database | requests | CPU ms per request | wall ms per request | core, ms |")
    print(f"| {database} | {REQUESTS} | {each:.1f} | {slow:.1f} | {core_ms():.0f} |")


if __name__ == "__main__":
    main()
