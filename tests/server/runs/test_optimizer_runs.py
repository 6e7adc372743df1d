"""What a server optimiser remembers is committed with the model: a run that is taken up goes on to the same bits."""

import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from safetensors import safe_open
from structlog.testing import capture_logs

from fedmtl_core.errors import ConfigError
from tests.server.playing import TASKS, model, play
from tests.support import model_bytes, reports_of, serving

NAMES = ("fedavgm", "fedadagrad", "fedadam", "fedyogi")


def settings_of(name, **store):
    return {"sections": {"server_optimizer": {"name": name}, "store": store}, "num_rounds": 4}


@pytest.mark.parametrize("name", NAMES)
async def test_a_run_taken_up_after_every_round_comes_to_the_same_bits_as_one_that_was_not(name, tmp_path):
    async with serving(tmp_path / "whole", model(), **settings_of(name)) as server:
        expected = await play(server, (1, 2, 3))
    for round_ in (1, 2, 3):
        async with serving(tmp_path / "parts", model(seed=round_ - 1), **settings_of(name)) as server:
            got = await play(server, [round_])
    assert got == expected


async def test_the_optimiser_moves_the_model_elsewhere_than_the_average(tmp_path):
    """Else the test above would show nothing."""
    reached = {}
    for name in ("fedavg", *NAMES):
        async with serving(tmp_path / name, model(), **settings_of(name)) as server:
            reached[name] = await play(server, (1, 2))
    assert len({one["shared"] for one in reached.values()}) == 5


async def test_in_asynchronous_rounds_it_works_the_same(tmp_path):
    """One client and a buffer of one: what is folded in which order is certain, over restarts too."""
    one, delta = {"a": "sst2"}, {"kind": pb.UPDATE_KIND_DELTA}
    rules = {"mode": "async", "buffer_size": 1, "min_clients": {"sst2": 1}}
    async with serving(tmp_path / "whole", model(), **settings_of("fedadam"), **rules) as server:
        expected = await play(server, (1, 2, 3), one, **delta)
    for round_ in (1, 2, 3):
        async with serving(tmp_path / "parts", model(), **settings_of("fedadam"), **rules) as server:
            got = await play(server, [round_], one, **delta)
    assert got == expected


async def test_a_head_that_nobody_reported_for_stays_and_so_does_what_is_remembered_of_it(tmp_path):
    async with serving(tmp_path, model(), quorum_timeout_s=0.3, **settings_of("fedavgm")) as server:
        before = await play(server, (1,), TASKS)
        after = await play(server, (2,), {"a": "sst2"})
    assert after["task:qqp"] == before["task:qqp"]
    assert after["task:sst2"] != before["task:sst2"]
    first, second = (memory(tmp_path, round_) for round_ in (1, 2))
    assert torch.equal(first["momentum/heads.qqp.weight"], second["momentum/heads.qqp.weight"])
    assert first["momentum/heads.qqp.weight"].abs().max() > 0
    assert not torch.equal(first["momentum/heads.sst2.weight"], second["momentum/heads.sst2.weight"])


def memory(run_dir, round_):
    with safe_open(run_dir / "checkpoints" / f"round-{round_:04}.state.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


async def test_a_run_is_not_taken_up_with_other_settings_of_its_optimiser(tmp_path):
    async with serving(tmp_path, model(), **settings_of("fedadam")) as server:
        await play(server, [1])
    other = settings_of("fedyogi") | {"sections": {"server_optimizer": {"name": "fedyogi", "tau": 0.5}}}
    with pytest.raises(ConfigError) as caught:
        async with serving(tmp_path, model(), **other):
            pass
    assert "server_optimizer.name: the run has 'fedadam', got 'fedyogi'" in str(caught.value)
    assert "server_optimizer.tau: the run has 0.001, got 0.5" in str(caught.value)


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [_flip, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
async def test_with_what_is_remembered_damaged_the_run_goes_back_to_the_round_before_and_its_memory(damage, tmp_path):
    async with serving(tmp_path, model(), **settings_of("fedadam")) as server:
        expected = await play(server, (1, 2, 3))
    damage(tmp_path / "checkpoints" / "round-0003.state.safetensors")
    with capture_logs() as logs:
        async with serving(tmp_path, model(seed=5), **settings_of("fedadam")) as server:
            assert server.federation.status().round == 3
            got = await play(server, [3])
    told = {line["event"]: line for line in logs}
    assert "round-0003.state.safetensors" in told["checkpoint.refused"]["reason"]
    assert told["run.rolled_back"]["to_round"] == 2
    assert got == expected


async def test_a_damaged_checkpoint_takes_its_memory_with_it(tmp_path):
    async with serving(tmp_path, model(), **settings_of("fedadagrad")) as server:
        expected = await play(server, (1, 2))
    _flip(tmp_path / "checkpoints" / "round-0001.safetensors")
    _flip(tmp_path / "checkpoints" / "round-0002.safetensors")
    async with serving(tmp_path, model(), **settings_of("fedadagrad")) as server:
        assert await play(server, (1, 2)) == expected  # from before the first step, with nothing remembered
    assert {"round-0001.state.damaged", "round-0002.state.damaged"} <= files(tmp_path)


def files(run_dir):
    return {path.name for path in (run_dir / "checkpoints").iterdir()}


async def test_what_is_remembered_is_removed_with_its_checkpoint(tmp_path):
    rules = settings_of("fedavgm", keep_checkpoints=2, durability="memory") | {"num_rounds": 5}
    async with serving(tmp_path, model(), **rules) as server:
        await play(server, (1, 2, 3, 4, 5))
    assert files(tmp_path) == {f"round-{n:04}.{kind}" for n in (4, 5) for kind in ("safetensors", "state.safetensors")}


async def test_without_an_optimiser_nothing_is_remembered(tmp_path):
    async with serving(tmp_path, model(), num_rounds=2) as server:
        await play(server, [1])
    assert files(tmp_path) == {"round-0000.safetensors", "round-0001.safetensors"}


async def test_a_step_out_of_range_keeps_the_component_as_it_was_and_the_log_says_so(tmp_path):
    rules = settings_of("fedavgm") | {"sections": {"server_optimizer": {"name": "fedavgm", "learning_rate": 1e39}}}
    with capture_logs() as logs:
        async with serving(tmp_path, model(), **rules) as server:
            before = model_bytes(server.federation.model)
            assert await play(server, [1]) == before
    reasons = [line["reason"] for line in logs if line["event"] == "component.discarded"]
    assert len(reasons) == 3
    assert reasons[0].startswith("its server_optimizer's step isn't finite: shared:")
    assert reports_of(tmp_path)[0].components == []
