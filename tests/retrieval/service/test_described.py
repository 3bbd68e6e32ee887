"""The service does what its OpenAPI description says, for whatever that allows to be sent."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "ignored_auth",
)


def test_generated_requests_get_documented_answers_and_never_a_failure(
    shop: Path, keys: Path, tmp_path: Path
):
    pytest.importorskip("schemathesis")
    runs = [str(shop / "text"), str(shop / "gru")]
    command = [sys.executable, "-m", "recsys.cli", "serve", *runs, "--port", "0", "--keys", keys]
    command += ["--max-body", "100000000"]  # a list that is too long is seen to be so
    log = tmp_path / "log"
    with log.open("w") as lines, subprocess.Popen(command, stderr=lines) as process:
        while not (first := log.read_text()).endswith("\n"):
            assert process.poll() is None
            time.sleep(0.1)
        url = json.loads(first.splitlines()[0])["url"]
        done = subprocess.run(
            [
                Path(sys.executable).parent / "schemathesis",
                *("run", f"{url}/openapi.json", "--no-color", "--checks", ",".join(CHECKS)),
                *("--header", "Authorization: Bearer admin-0123456789"),
                *("--max-examples", "100", "--seed", "1"),
            ],
            capture_output=True,
            text=True,
            timeout=900,
            cwd=tmp_path,
        )
        process.terminate()
    assert done.returncode == 0, done.stdout[:2000] + done.stdout[-2000:]
    assert '"status": 200' in log.read_text()
    assert '"status": 500' not in log.read_text()
