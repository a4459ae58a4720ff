"""What fal-client's users call."""

import os
from typing import Any

import fal_client
from fal_client import client as module

# The client only knows fal's hosts; no setting changes them.
module.RUN_URL_FORMAT = os.environ["FAL_URL"] + "/"
module.QUEUE_URL_FORMAT = os.environ["FAL_QUEUE_URL"] + "/"
client = fal_client.SyncClient(key=os.environ["FAL_KEY"])


def run(endpoint: str, arguments: dict[str, Any], key: str | None = None) -> Any:
    chosen = fal_client.SyncClient(key=key) if key else client
    return chosen.run(endpoint, arguments)


def submit(endpoint: str, arguments: dict[str, Any]) -> Any:
    handle = client.submit(endpoint, arguments)
    return {
        "request_id": handle.request_id,
        "response_url": handle.response_url,
        "status_url": handle.status_url,
        "cancel_url": handle.cancel_url,
    }


def status(endpoint: str, request_id: str, logs: bool = False) -> Any:
    return client.status(endpoint, request_id, with_logs=logs)


def result(endpoint: str, request_id: str) -> Any:
    return client.result(endpoint, request_id)


def cancel(endpoint: str, request_id: str) -> Any:
    return client.cancel(endpoint, request_id)


def subscribe(endpoint: str, arguments: dict[str, Any]) -> Any:
    """The result, and the status updates on the way to it."""
    seen: list[str] = []
    output = client.subscribe(
        endpoint, arguments, with_logs=True, on_queue_update=lambda one: seen.append(_word(one))
    )
    return {"output": output, "seen": seen}


def stream(endpoint: str, arguments: dict[str, Any]) -> Any:
    return list(client.stream(endpoint, arguments))


def _word(status: fal_client.Status) -> str:
    logs = getattr(status, "logs", None)
    return type(status).__name__ + "".join(f" {line['message']}" for line in logs or [])


def explain(error: Exception) -> dict[str, Any]:
    if not isinstance(error, fal_client.FalClientHTTPError):
        return {"message": str(error)}
    return {"status": error.status_code, "code": error.error_type, "message": error.message}
