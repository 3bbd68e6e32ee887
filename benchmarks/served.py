"""A service to measure: `recsys serve` as a process of its own."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

START_S = 120
"""Longest wait for a service to listen, and for it to end."""


def free_port() -> int:
    """A port that the system does not hand out. A client that looks for a service that is down may
    be given the very port that it looks for, be connected to itself and keep the service out."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as trying:
            if trying.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError("no port is free")


class Served:
    """A service that serves from the moment it is built; `stop` or `kill` it in the end."""

    def __init__(self, runs: list[Path], log: Path, *options: str, port: int = 0):
        """Waits until the service listens. What it logs is put behind what is in `log`.

        RuntimeError with the end of its log where it does not come so far.
        """
        self._log = log
        with log.open("ab") as errors:
            start = errors.tell()
            words = [sys.executable, "-m", "recsys.cli", "serve", *map(str, runs)]
            self._process = subprocess.Popen(
                [*words, "--port", str(port), *options], stdout=errors, stderr=errors
            )
        started = time.perf_counter()
        self.port = self._listening(start)
        self.start_seconds = time.perf_counter() - started

    @property
    def host(self) -> str:
        """Where it listens."""
        return "127.0.0.1"

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def resident_mb(self) -> float:
        """MB of the process that lie in memory, mapped files included."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8").splitlines()
        (line,) = [line for line in lines if line.startswith("VmRSS")]
        return round(int(line.split()[1]) * 1024 / 1e6, 1)

    def stop(self) -> int:
        """Ask it to end, and wait for it; the exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it between two instructions."""
        self._end(signal.SIGKILL)

    def _end(self, sign: signal.Signals) -> int:
        os.kill(self._process.pid, sign)
        return self._process.wait(START_S)

    def _listening(self, start: int) -> int:
        """The port that the log names behind its byte `start`."""
        waited_until = time.monotonic() + START_S
        while time.monotonic() < waited_until and self.alive:
            with self._log.open("rb") as file:
                file.seek(start)
                for line in file.read().splitlines():
                    if b'"serving"' in line:
                        return int(json.loads(line)["url"].rpartition(":")[2])
            time.sleep(0.05)
        self.kill()
        raise RuntimeError(f"the service did not start; its log ends with:\n{self.last_words()}")

    def last_words(self) -> str:
        """The end of the log."""
        return self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
