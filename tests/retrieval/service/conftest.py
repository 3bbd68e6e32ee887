"""A shop with two runs: one knows items by text, one by id; and clients of a service over them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from shops import SMALL, shop_folder

from recsys.retrieval.service.app import application
from recsys.retrieval.service.config import ServiceConfig
from recsys.retrieval.service.service import Service
from recsys.run import train

Open = Callable[..., TestClient]


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs `text` and `gru` over cream-0 … soap-5; to be read only."""
    folder = tmp_path_factory.mktemp("served")
    data = shop_folder(folder)
    short = {**SMALL, "trainer.epochs": 1}
    train(data, "sasrec", folder / "text", settings={**short, "model.item_encoder": "text"})
    train(data, "gru4rec", folder / "gru", settings=short)
    return folder


@pytest.fixture
def opened(shop: Path) -> Iterator[Open]:
    """Opens a service over runs (the two of the shop if none is named) under options."""
    with ExitStack() as stack:

        def open_service(*runs: Path, **options: Any) -> TestClient:
            service = Service.open(runs or (shop / "text", shop / "gru"), ServiceConfig(**options))
            client = TestClient(
                application(service), base_url="http://127.0.0.1", raise_server_exceptions=False
            )
            return stack.enter_context(client)

        yield open_service


@pytest.fixture
def client(opened: Open) -> TestClient:
    """A service without options."""
    return opened()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A file with the key `reader-0123456789` and the administrator's `admin-0123456789`."""
    path = tmp_path / "keys.toml"
    path.write_text('read = ["reader-0123456789"]\nadmin = ["admin-0123456789"]\n')
    return path
