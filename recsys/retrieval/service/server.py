"""The service in this process, until it is told to stop."""

import gc
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from recsys.errors import InputError, WorkError
from recsys.retrieval.service.app import application
from recsys.retrieval.service.config import ServiceConfig
from recsys.retrieval.service.logs import say, write_json_lines
from recsys.retrieval.service.service import Service

LONGEST_STOP_S = 30
"""Seconds that requests at work are waited for at a stop."""


class _Server(uvicorn.Server):
    """Says when it serves and when it stops."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.stopping = True
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or []:
            host, port = listening.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            models = {name: v["fingerprint"][:12] for name, v in self._service.versions().items()}
            say("serving", url=f"http://{shown}:{port}", models=models)


def serve_until_stopped(runs: Sequence[Path], config: ServiceConfig) -> None:
    """Serve runs until SIGINT or SIGTERM, after which requests at work are still answered.

    InputError where a run cannot be served, WorkError where the address cannot be listened on.
    """
    listening = _listen(config)
    with listening:
        write_json_lines()
        service = Service.open(runs, config)
        # What is there now stays: the collector need not stop all answers for 130 ms to find that.
        gc.collect()
        gc.freeze()
        if not config.is_local and config.keys is None:
            say(
                "warning",
                text=f"{config.host} is reached from elsewhere, and all may do all: --keys",
            )
        server = _Server(
            uvicorn.Config(
                application(service),
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=LONGEST_STOP_S,
            ),
            service,
        )
        # uvicorn sends the signal that stopped it once more, which would end the process as if it
        # had been killed.
        kept = {sig: signal.signal(sig, _nothing) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            server.run(sockets=[listening])
        finally:
            for sig, handler in kept.items():
                signal.signal(sig, handler)
    say("stopped")


def _listen(config: ServiceConfig) -> socket.socket:
    """A socket that listens."""
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        listening = socket.create_server(address[:2], family=family, backlog=2048)
    except socket.gaierror:
        raise InputError(f"--host names no address of this machine: {config.host!r}") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise WorkError(f"{config.host}:{config.port} cannot be listened on: {reason}") from None
    # Else the end of an answer waits for the client's acknowledgement of its start, some 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _nothing(sig: int, frame: FrameType | None) -> None:
    """The signal was heeded already."""
