"""One line of log per event, as JSON or for a console; the settings' LOGGING."""

from typing import Any

import structlog

from geekhub.lib import masks

_STAMPS: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


def configured(form: str, *, level: str) -> dict[str, Any]:
    """Configure structlog, and return LOGGING for `form`, which is `json` or `console`."""
    structlog.configure(
        processors=[*_STAMPS, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "lines": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": _STAMPS,
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    structlog.processors.JSONRenderer()
                    if form == "json"
                    else structlog.dev.ConsoleRenderer(colors=False),
                    # Last, over the whole line: a key may be in a path, an exception or a message.
                    lambda logger, method, line: masks.masked(line),
                ],
            }
        },
        "filters": {"outages": {"()": "geekhub.lib.outages.OutageFilter"}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "lines",
                "filters": ["outages"],
            }
        },
        "root": {"handlers": ["stderr"], "level": level},
        "loggers": {
            "django.request": {"level": "ERROR"},
            "httpx": {"level": "WARNING"},
            # The request line of the API says more; a proxy has its own.
            "uvicorn.access": {"level": "WARNING"},
        },
    }
