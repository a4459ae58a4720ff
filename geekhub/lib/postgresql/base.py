"""A connection that waits so long for an answer and no longer.

`connect_timeout` covers the way in, and the kernel a host that is gone. Nothing covers a server
whose kernel answers and which itself does not: a stopped process, a disk that hangs. A page would
wait for it forever, with a thread.
"""

from typing import Any

import psycopg
from django.db.backends.postgresql import base
from psycopg.abc import RV, PQGen

INTERVAL = 0.1


class Connection(psycopg.Connection[Any]):
    """Closes itself when the server is silent for `answer_within` seconds; 0 waits forever."""

    answer_within = 0.0

    def wait(self, gen: PQGen[RV], interval: float = INTERVAL, timeout: float | None = None) -> RV:
        """Return what the server answers. Raises OperationalError when it does not."""
        try:
            return super().wait(gen, interval, timeout or self.answer_within or None)
        except psycopg.errors._WaitTimeout as error:
            if timeout is None:
                # Half an exchange: there is no way back to a usable connection.
                self.pgconn.finish()
                raise psycopg.OperationalError(
                    f"the server has not answered for {self.answer_within:g} s"
                ) from error
            raise


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's own; OPTIONS["answer_within"] is in seconds."""

    def get_new_connection(self, conn_params: dict[str, Any]) -> Connection:
        """Open a connection."""
        seconds = conn_params.pop("answer_within", 0.0)
        self.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        connection = Connection.connect(**conn_params)
        connection.answer_within = seconds
        return connection
