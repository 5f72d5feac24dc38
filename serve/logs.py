"""The log: one JSON object a line on standard error, the WSGI server's own lines included."""

from __future__ import annotations

from typing import Any

# As ``logging.config.dictConfig`` takes it.
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "fmt": "%(levelname)s %(name)s %(message)s",
            "rename_fields": {"levelname": "level", "name": "logger"},
            "timestamp": True,
        }
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"level": "INFO", "handlers": ["console"]},
    # The server sets this one's level.
    "loggers": {"_granian": {}},
}
