"""ServiceConfig: how a service is run."""

from dataclasses import dataclass
from pathlib import Path

from recsys.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServiceConfig:
    """Everything that `recsys serve` may be told. InputError where a value makes no sense."""

    host: str = "127.0.0.1"
    """Address to listen on; other machines reach 0.0.0.0 or a public one alone."""
    port: int = 8000
    """TCP port; 0 takes a free one, which the first line of the log names."""
    keys: Path | None = None
    """TOML file with `read` and `admin`, lists of API keys; without it all may do all."""
    journal: Path | None = None
    """Folder where changes of the catalogue are kept across restarts, a file a model."""
    redis: str | None = None
    """Address of the Redis server for states of users; without it they are kept in the process."""
    max_users: int = 20_000
    """States that are kept in the process; the least recently used goes first."""
    watch_s: float | None = None
    """Seconds between looks at the places of the runs for new ones; None: only on /reload."""
    timeout_s: float = 10.0
    """Seconds after which a question is given up."""
    max_waiting: int = 256
    """Requests at work at a time; further ones are told to come back."""
    max_body: int = 1_000_000
    """Bytes of a request's body."""
    threads: int = 1
    """Torch's threads for one batch."""
    log_users: bool = False
    """Whether the log names users."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError(f"--port must lie in [0, 65535], got {self.port}")
        limits = {
            "--watch": self.watch_s,
            "--timeout": self.timeout_s,
            "--max-users": self.max_users,
            "--max-waiting": self.max_waiting,
            "--max-body": self.max_body,
            "--threads": self.threads,
        }
        for name, value in limits.items():
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{name} must be positive, got {value}")

    @property
    def is_local(self) -> bool:
        """Whether programs of this machine alone reach the service."""
        return self.host in LOOPBACK
