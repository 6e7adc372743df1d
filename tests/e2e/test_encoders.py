"""Real processes that are given an encoder which can't be trained as it is asked for."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest

from tests.e2e.test_processes import CONFIG, Federation
from tests.tiny_encoders import save

pytestmark = pytest.mark.e2e


def test_a_server_refuses_to_start_with_an_encoder_that_can_not_be_trained(tmp_path):
    source = save(tmp_path / "gpt2", "gpt2", without="pad")
    (tmp_path / "config.yaml").write_text(CONFIG.replace("builtin:toy", source))
    options = ("--config", str(tmp_path / "config.yaml"), "--port", "0", "--run-dir", str(tmp_path / "run"))
    command = [sys.executable, "-m", "fedmtl_server", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert f"{source}: its tokenizer has no padding token" in said
    assert "Traceback" not in said
    assert "model.ready" not in said
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_client_refuses_an_encoder_of_its_own_before_it_takes_part_in_a_round(tmp_path):
    source = save(tmp_path / "gpt2", "gpt2", "left")
    with contextlib.ExitStack() as stack:
        run = Federation(tmp_path, stack, "tasks={sst2: {data: {builtin: sst2}}}")
        client = run.client("sst2", "--set", f"model.client_model={source}")
        assert client.wait(90) == 2, run.log("sst2_client")
        assert f"{source}: with model.pooling: cls the heads see the first token" in run.log("sst2_client")
        assert "Traceback" not in run.log("sst2_client")
        assert run.reports() == []
