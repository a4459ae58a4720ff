"""A store that is away for a minute under load: nothing charged that cannot be fetched afterwards.

    python -m benchmarks.outage [release|spool]

Prints one row, and exits 1 when a picture was charged and is not there, or is there twice.
"""

import os
import subprocess
import sys
import threading
import time
from collections import Counter

import httpx

from benchmarks.gateway import gateway, openai
from tests.emulators.supabase import SupabaseEmulator

CALM_SECONDS = 10
OUTAGE_SECONDS = 60
CLIENTS = 6
HEAL_SECONDS = 60


def main() -> int:
    """Draw before, during and after the outage; then look at every URL that was answered."""
    mode = sys.argv[1] if len(sys.argv) > 1 else "spool"
    statuses: Counter[int] = Counter()
    urls: list[str] = []
    over = threading.Event()
    with SupabaseEmulator() as supabase, openai(delay=0.2) as upstream:
        os.environ |= {
            "SUPABASE_URL": supabase.url,
            "SUPABASE_KEY": supabase.secret_key,
            "STORAGE_OUTAGE": mode,
        }
        with gateway(upstream, workers=1) as served:
            worker = subprocess.Popen(
                [sys.executable, "manage.py", "worker"], env=os.environ | served.environment
            )

            def draw() -> None:
                headers = {"Authorization": f"Bearer {served.key}"}
                with httpx.Client(base_url=served.origin, headers=headers, timeout=90) as client:
                    while not over.is_set():
                        body = {"model": "openai/gpt-image-1", "prompt": "a red kite"}
                        answer = client.post("/v1/images/generations", json=body)
                        statuses[answer.status_code] += 1
                        if answer.status_code == 200:
                            urls.append(answer.json()["data"][0]["url"])

            clients = [threading.Thread(target=draw) for _ in range(CLIENTS)]
            for client in clients:
                client.start()
            time.sleep(CALM_SECONDS)
            supabase.refuse_connections()
            time.sleep(OUTAGE_SECONDS)
            supabase.accept_connections()
            time.sleep(CALM_SECONDS)
            over.set()
            for client in clients:
                client.join()
            end = time.monotonic() + HEAL_SECONDS
            while len(supabase.objects) < len(urls) and time.monotonic() < end:
                time.sleep(0.5)
            worker.terminate()
            worker.wait()
            there = sum(httpx.get(url).status_code == 200 for url in urls)
            objects = len(supabase.objects)
    print("| mode | 200 | 500 | fetched afterwards | objects in the bucket |")
    print(f"| {mode} | {statuses[200]} | {statuses[500]} | {there} | {objects} |")
    return 0 if there == len(urls) == len(set(urls)) == objects else 1


if __name__ == "__main__":
    sys.exit(main())
