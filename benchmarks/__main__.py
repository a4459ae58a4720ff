"""`make bench`: every benchmark on a PostgreSQL and a Redis of their own."""

import subprocess
import sys

BENCHMARKS = ("overhead", "in_flight", "storage_upload")

if __name__ == "__main__":
    wanted = sys.argv[1:] or BENCHMARKS
    for name in wanted:
        command = [sys.executable, "-m", "tests.run", "--services", "--"]
        subprocess.run([*command, sys.executable, "-m", f"benchmarks.{name}"], check=True)
