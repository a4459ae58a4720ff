"""The engine under the name `tests.faulty`, as Django looks for it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.db import connection

from tests.faulty import stage

if TYPE_CHECKING or connection.vendor == "postgresql":
    from geekhub.lib.postgresql.base import DatabaseWrapper as Real
else:
    from django.db.backends.sqlite3.base import DatabaseWrapper as Real


class DatabaseWrapper(Real):
    """Asks the stage before each statement and each COMMIT."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute_wrappers.append(self._execute)

    def _execute(
        self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any
    ) -> Any:
        return self._perform(sql, lambda: execute(sql, params, many, context))

    def _commit(self) -> None:
        if self.connection is not None:
            self._perform("COMMIT", super()._commit)

    def _perform[T](self, statement: str, do: Callable[[], T]) -> T:
        found = stage.next(statement)
        if found is None:
            return do()
        # SQLite's BEGIN sends nothing: one that fails has not begun.
        if found.after and not statement.startswith("BEGIN"):
            do()
        if found.hang_up:
            self._hang_up()
            if not found.after:
                return do()
        with self.wrap_database_errors:
            raise getattr(self.Database, found.error)(f"broken by a test at {statement[:60]}")

    def _hang_up(self) -> None:
        """Let the server end this session, and wait until it has."""
        pid = self.connection.info.backend_pid
        parameters = self.get_connection_params()
        del parameters["answer_within"]  # our engine's own
        with self.Database.connect(**parameters) as other:
            other.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
