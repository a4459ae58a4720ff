"""Static files by whitenoise, without what it costs under ASGI."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from whitenoise.middleware import WhiteNoiseMiddleware


class StaticFiles(WhiteNoiseMiddleware):  # type: ignore[misc]
    """Answers with a whole file at once.

    Whitenoise hands Django an open file, which under ASGI is read to its end in a thread with a
    warning each time. Ours are small.
    """

    @staticmethod
    def serve(static_file: Any, request: HttpRequest) -> HttpResponse:
        """Return the file, or what the request's conditions make of it."""
        found = static_file.get_response(request.method, request.META)
        content = b""
        if found.file is not None:
            with found.file as file:
                content = file.read()
        response = HttpResponse(content, status=int(found.status))
        # Whitenoise sets the type, except for an answer without content.
        del response["Content-Type"]
        for name, value in found.headers:
            response[name] = value
        return response
