"""The retriever behind HTTP: `recsys serve RUN`. Needs the extra `serve`.

`server` runs it, `app` is the FastAPI application, `bodies` what goes in and out, `service` what
answers. Questions of one moment are gathered into one batch by `batcher`; `guard` stands before
all of it with limits, timeouts, logs and metrics.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path

from recsys.errors import InputError
from recsys.retrieval.service.config import ServiceConfig


def serve(runs: Sequence[Path], config: ServiceConfig) -> None:
    """Serve runs until SIGINT or SIGTERM, after which requests at work are still answered.

    InputError where a run cannot be served, WorkError where the address cannot be listened on.
    """
    for package in ("fastapi", "prometheus_client", "uvicorn"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise InputError(
                f"recsys serve needs the package {package}: pip install 'recsys[serve]'"
            ) from None
    from recsys.retrieval.service.server import serve_until_stopped

    serve_until_stopped(runs, config)
