"""How gunicorn runs the service; bin/serve starts it with this file."""

import contextlib
import math
import os
import resource
from pathlib import Path

import environ
from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker

# The settings read the same file. Without this line a DATABASE_URL or a PORT that stands only there
# would be unknown here; what the environment holds wins in both places.
env = environ.Env()
if _env_file := env.str("ENV_FILE", default=str(Path(__file__).resolve().parent / ".env")):
    environ.Env.read_env(_env_file)


def _cores() -> int:
    """Return how many cores this process may use, which may not be all the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# Every connection is a descriptor, and the usual 1,024 are soon gone. Not every system takes its
# own hard limit; then what is there has to do.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
with contextlib.suppress(ValueError, OSError):
    resource.setrlimit(resource.RLIMIT_NOFILE, (_hard, _hard))

# Not gunicorn's own asgi worker: that one ignores `backlog`, and drops connections in a burst.
worker_class = "geekhub.server.Worker"

# Loopback, because a proxy that ends TLS stands in front. BIND replaces the whole address where it
# does not, as 0.0.0.0:8000 in a container or unix:/run/geekhub.sock beside nginx.
bind = env.str("BIND", default=f"127.0.0.1:{env.int('PORT', default=8000)}")
# Waiting for a provider takes no worker, so cores are the measure. SQLite has one writer, and more
# processes would only wait for each other.
_sqlite = (env.str("DATABASE_URL", default="") or "sqlite").startswith("sqlite")
workers = env.int("WEB_WORKERS", default=1 if _sqlite else _cores())
# A burst waits in the kernel rather than being refused; the kernel caps this at net.core.somaxconn.
backlog = 4096
# Whom to believe about a client's address is TRUSTED_PROXIES; uvicorn would believe loopback.
forwarded_allow_ips = "0.0.0.0/32"
# No preload: threads, event loops and database connections do not survive a fork.
preload_app = False

# A request may take its whole deadline, and then has to settle and store: only after that may a
# stopping worker be killed, or a picture that was paid for is lost.
graceful_timeout = math.ceil(env.float("REQUEST_DEADLINE_SECONDS", default=60)) + 30
# For this worker a heartbeat of its event loop, not a limit on requests: one that is stuck this
# long is replaced.
timeout = 120
# Longer than the 60 s for which nginx and the cloud balancers keep an idle connection. If we closed
# first, the proxy could send a request into a connection that is just going away, and answer 502.
keepalive = 75

# The service writes its own request lines, with the request id and without secrets.
accesslog = None
errorlog = "-"
# Would put a socket into $HOME/.gunicorn, outside DATA_DIR; signals do all that is needed.
control_socket_disable = True
# The heartbeat touches a file; on a slow disk that blocks the event loop, in memory it does not.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

# Where the operator names a folder for it, prometheus_client adds up the numbers of all workers.
_metrics = env.str("PROMETHEUS_MULTIPROC_DIR", default="")


def on_starting(server: Arbiter) -> None:
    """Drop the numbers of an earlier run, which would be added to this one's."""
    if _metrics:
        Path(_metrics).mkdir(parents=True, exist_ok=True)
        for file in Path(_metrics).glob("*.db"):
            file.unlink(missing_ok=True)


def child_exit(server: Arbiter, worker: Worker) -> None:
    """Take a dead worker's gauges out of the sum."""
    if _metrics:
        from prometheus_client import multiprocess

        multiprocess.mark_process_dead(worker.pid)
