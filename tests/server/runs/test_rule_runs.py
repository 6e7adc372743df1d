"""A rule that needs all updates of a round at once, in a run: from staging, in every encoding, over restarts."""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.errors import ConfigError
from fedmtl_core.wire.encodings import decode, encode
from fedmtl_core.wire.formats import ENCODINGS
from fedmtl_server.aggregation import rule_accumulator
from fedmtl_server.storage.paths import CONFIG_FILE, STAGING
from tests.server.playing import play, push
from tests.support import (
    OddEncoder,
    TinyEncoder,
    chunk_messages,
    model_bytes,
    reports_of,
    serving,
    tiny_model,
    watching,
)

MEDIAN = "examples.own_aggregation.median:Median"
CLIENTS = dict.fromkeys("abcde", "sst2")
OPENED = pb.ROUND_EVENT_KIND_OPENED


@pytest.fixture(autouse=True)
def _in_the_repository_with_small_blocks(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[3])
    monkeypatch.setattr(rule_accumulator, "MAX_ELEMENTS", 37)


def settings_of(rule=MEDIAN, durability="process", num_clients=5, **server):
    return {
        "sections": {"aggregation": {"rule": rule}, "store": {"durability": durability}},
        "min_clients": {"sst2": num_clients},
        "num_rounds": 3,
        "settings": server,
    }


def model(seed=0):
    return tiny_model("sst2", encoder=TinyEncoder(seed=seed))


async def played(run_dir, rounds=(1, 2), **settings):
    async with serving(run_dir, model(), **settings_of(**settings)) as server:
        return await play(server, rounds, CLIENTS)


async def test_wherever_updates_are_kept_the_model_becomes_the_same_median(tmp_path):
    reached = {
        (durability, megabytes): await played(
            tmp_path / f"{durability}-{megabytes}", durability=durability, staging_memory_mb=megabytes
        )
        for durability in ("power", "process", "memory")
        for megabytes in (0, 64)
    }
    mean = await played(tmp_path / "mean", rule="mean")
    (median,) = {tuple(sorted(one.items())) for one in reached.values()}
    assert dict(median) != mean
    for durability, megabytes in reached:
        assert not (tmp_path / f"{durability}-{megabytes}" / STAGING).exists()


@pytest.mark.parametrize("durability", ["process", "memory"])
@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_updates_that_come_encoded_count_as_what_they_decode_to(encoding, durability, tmp_path, monkeypatch):
    monkeypatch.setattr(rule_accumulator, "MAX_ELEMENTS", 300_000)  # of components with a million numbers
    mine = tiny_model("sst2", encoder=OddEncoder())
    before = {scope: component.clone() for scope, component in mine.components.items()}
    settings = settings_of(durability=durability, num_clients=3)
    decoded = []
    async with serving(tmp_path, mine, **settings) as server, watching(server, **dict.fromkeys("abc", "sst2")) as all_:
        for seed, client in enumerate(all_.values()):
            header, _ = await client.get_slice()
            data = {component.scope: component for component in noise_like(before, seed)}
            encoded = {scope: encode(component, encoding) for scope, component in data.items()}
            decoded.append({scope: decode(data[scope].layout, encoding, one) for scope, one in encoded.items()})
            parts = [
                pb.Component(
                    scope=one.scope,
                    tensors=one.tensors,
                    num_bytes=one.num_bytes,
                    encoded_bytes=len(encoded[one.scope]),
                    encoding=pb.Encoding.Value(f"ENCODING_{encoding.upper()}"),
                )
                for one in header.components
            ]
            messages = client.update(header, {}, kind=pb.UPDATE_KIND_DELTA, components=parts) + chunk_messages(
                {scope: one.numpy().tobytes() for scope, one in encoded.items()}
            )
            await client.push(messages)
        await all_["a"].until(OPENED, 2)
    for scope, component in before.items():
        for number, (got, run) in enumerate(zip(mine.components[scope].runs(), component.runs(), strict=True)):
            wide = torch.float64 if run.dtype == torch.float64 else torch.float32
            counted = [run.to(wide) + one[scope].runs()[number].to(wide) for one in decoded]
            assert torch.equal(got, torch.stack(counted).median(dim=0).values.to(run.dtype))


def noise_like(components, seed):
    generator = torch.Generator().manual_seed(seed)
    noise = [component.clone() for component in components.values()]
    for component in noise:
        for run in component.runs():
            run.copy_(torch.randn(run.shape, generator=generator) * 0.1)
    return noise


async def test_a_server_that_ends_in_mid_round_and_is_resumed_comes_to_the_same_bits(tmp_path):
    expected = await played(tmp_path / "whole")
    first, last = dict.fromkeys("cad", "sst2"), dict.fromkeys("be", "sst2")
    settings = settings_of()
    async with serving(tmp_path / "parts", model(), **settings) as server, watching(server, **CLIENTS) as clients:
        await clients["a"].until(OPENED, 1)
        for client_id in first:
            await push(clients[client_id], 1)
    assert len(list((tmp_path / "parts" / STAGING).iterdir())) == 3
    async with serving(tmp_path / "parts", model(seed=9), **settings) as server:
        async with watching(server, **CLIENTS) as clients:
            for client_id in last:
                await push(clients[client_id], 1)
            await clients["a"].until(OPENED, 2)
            for client in clients.values():
                await push(client, 2)
            await clients["a"].until(OPENED, 3)
        got = model_bytes(server.federation.model)
    assert got == expected


async def test_in_asynchronous_rounds_a_rule_sees_the_updates_of_the_buffer(tmp_path):
    rounds = {"mode": "async", "buffer_size": 3}
    settings = settings_of(num_clients=1)
    async with serving(tmp_path, model(), **settings, **rounds) as server:
        before = model_bytes(server.federation.model)
        async with watching(server, **dict.fromkeys("abc", "sst2")) as clients:
            for client in clients.values():
                await push(client, 1, kind=pb.UPDATE_KIND_DELTA)
            await clients["a"].until(OPENED, 2)
        assert model_bytes(server.federation.model) != before
    report = reports_of(tmp_path)[-1]
    assert [part.client_id for part in report.components[0].contributions] == ["a", "b", "c"]


async def test_what_a_rule_raises_ends_the_run_with_the_setting_in_the_error(tmp_path, monkeypatch):
    (tmp_path / "failing_rule.py").write_text(
        "from fedmtl_server.aggregation.rules import BlockRule\n\n"
        "class Failing(BlockRule):\n"
        "    def aggregate(self, values, weights, context):\n"
        "        raise ValueError('not today')\n"
    )
    monkeypatch.chdir(tmp_path)
    settings = settings_of("failing_rule:Failing", num_clients=1)
    with pytest.raises(ConfigError, match=r"aggregation\.rule: failing_rule:Failing raised ValueError: not today"):
        async with serving(tmp_path / "run", model(), **settings) as server, watching(server, a="sst2") as clients:
            await push(clients["a"], 1)
            await server.run_task


async def test_the_rule_that_the_documentation_shows_holds_a_run(tmp_path, monkeypatch):
    expected = await played(tmp_path / "example", (1,))
    page = (Path("docs") / "aggregation.md").read_text(encoding="utf-8")
    text = page.partition("## Write an aggregation rule")[2]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (section,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "medians.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert await played(tmp_path / "run", (1,), rule=yaml.safe_load(section)["aggregation"]["rule"]) == expected


async def test_a_run_that_does_not_say_its_rule_has_the_mean_and_is_taken_up_so(tmp_path):
    """Runs of the version before have no such key."""
    await played(tmp_path, (1,), rule="mean")
    file = tmp_path / CONFIG_FILE
    text = file.read_text()
    assert "rule: mean" in text
    file.write_text("".join(line for line in text.splitlines(keepends=True) if "rule: mean" not in line))
    got = await played(tmp_path, (2,), rule="mean")
    assert got == await played(tmp_path.with_name("other"), rule="mean")
    with pytest.raises(ConfigError, match=r"aggregation\.rule: the run has 'mean', got 'examples\.own_agg"):
        await played(tmp_path, (3,))
