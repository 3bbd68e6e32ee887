"""Logs: one JSON object a line on standard error."""

import json
import logging
import sys
import time
from typing import Any

log = logging.getLogger("recsys.service")
SOURCES = ("recsys", "uvicorn.error")
"""Loggers that write here."""


class JsonLines(logging.Formatter):
    """{"time": ISO 8601 in UTC, "level", "event", …the fields of the event}."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever is in the record."""
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{second}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def say(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """An event with its fields."""
    if log.isEnabledFor(level):
        log.log(level, event, extra={"fields": fields})


def write_json_lines() -> None:
    """Have all that is logged here go to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in SOURCES:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    # Its lines name addresses of clients and repeat what is said here.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
