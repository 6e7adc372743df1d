"""Runs with adapters that start from another run: what they take, and what is refused in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError
from fedmtl_core.model.modeling import TOY_MODEL
from fedmtl_server.assembly import Assembly
from fedmtl_server.export.folders import export_all
from fedmtl_server.initial_model import examine_start
from fedmtl_server.model import MTLServerModel
from fedmtl_server.model_parts import ModelParts
from fedmtl_server.saved_runs import open_run
from fedmtl_server.storage.store import RunStore
from tests.tiny_encoders import save

ADAPTERS = {"rank": 2, "aggregation": "average"}


def config(
    tmp_path: Path,
    adapters: dict[str, Any] | None,
    from_run: Path | None = None,
    source: str = TOY_MODEL,
    seed: int = 1,
) -> Config:
    return Config.model_validate(
        {
            "model": {"server_model": source, "from_run": from_run and str(from_run), "adapters": adapters},
            "training": {"seed": seed, "num_rounds": 1, "max_length": 20},
            "server": {"port": 0, "runs_dir": str(tmp_path / "runs")},
            "tasks": {"sst2": {}, "qqp": {}},
        }
    )


def saved(tmp_path: Path, adapters: dict[str, Any] | None, **named: Any) -> MTLServerModel:
    """A run in the folder `first`, with random values in every component; its model."""
    given = config(tmp_path, adapters, **named)
    model = MTLServerModel.from_config(given)
    generator = torch.Generator().manual_seed(5)
    for component in model.components.values():
        for view in component.views().values():
            view.add_(torch.randn(view.shape, generator=generator), alpha=0.1)
    RunStore.create(
        given, "0" * 32, model.components, model.summary(), tmp_path / "first", base=model.base.get("frozen")
    ).close()
    return model


def refusal(tmp_path: Path, adapters: dict[str, Any] | None, **named: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Assembly(config(tmp_path, adapters, tmp_path / "first", **named), None, None, finished=False)
    assert str(caught.value).startswith("model.from_run: ")
    return str(caught.value)


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        (ADAPTERS, ADAPTERS),
        ({"rank": 2}, {"rank": 2, "dropout": 0.1}),
        (ADAPTERS, {"rank": 2, "aggregation": "alternate"}),
        (
            {"rank": 2, "kind": "dora", "aggregation": "alternate"},
            {"rank": 2, "kind": "dora", "aggregation": "average"},
        ),
    ],
)
def test_adapters_heads_and_base_are_taken(tmp_path, theirs, mine):
    first = saved(tmp_path, theirs)
    assembly = Assembly(config(tmp_path, mine, tmp_path / "first"), None, None, finished=False)
    model = assembly.model
    for task in ("sst2", "qqp"):
        got, expected = model.get_model_slice_for_task(task), first.get_model_slice_for_task(task)
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in got)
        assert any("lora_B" in name for name in got)
    assert model.base["frozen"].digest() == first.base["frozen"].digest()
    opened = assembly.open()
    try:
        assert opened.federation.published.base_digest == first.base["frozen"].digest()
    finally:
        opened.store.close()


def test_a_run_without_adapters_starts_none_with_them_and_the_reverse(tmp_path):
    saved(tmp_path, None)
    said = refusal(tmp_path, ADAPTERS)
    assert "has no adapters, but this one has" in said
    assert f"`fedmtl-server export --all DIR --run-dir {tmp_path / 'first'}`" in said
    assert "name DIR/encoder in model.server_model" in said


def test_what_the_refusal_says_to_do_is_possible(tmp_path):
    first = saved(tmp_path, ADAPTERS)
    said = refusal(tmp_path, None)
    assert "has adapters, but this one hasn't" in said
    assert "name DIR/encoder in model.server_model" in said
    export_all(open_run(tmp_path / "first"), tmp_path / "out")
    there = MTLServerModel.from_config(config(tmp_path, None, source=str(tmp_path / "out" / "encoder")))
    merged = dict(first.encoder_for("sst2").named_parameters())
    assert merged.keys() == {name.removeprefix("encoder.") for name in there.get_shared_parameters()}
    assert all(torch.equal(there.get_shared_parameters()[f"encoder.{name}"], one) for name, one in merged.items())


@pytest.mark.parametrize(
    ("mine", "difference"),
    [
        (
            {"rank": 3, "alpha": 4.0},
            "has other model.adapters: rank: expected 2, got 3; alpha: expected 16.0, got 4.0.",
        ),
        ({"kind": "rslora"}, "kind: expected lora, got rslora."),
        ({"aggregation": "freeze_a"}, "aggregation: expected average, got freeze_a."),
        ({"aggregation": "stack"}, "adds its adapters to the encoder's weights"),
        ({"targets": ["query"]}, "has adapters at other layers, or another encoder than model.server_model: encoder."),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, mine, difference):
    saved(tmp_path, ADAPTERS)
    assert difference in refusal(tmp_path, ADAPTERS | mine)


def test_another_base_is_refused_by_its_first_tensor(tmp_path):
    one, other = save(tmp_path / "one", "bert"), save(tmp_path / "other", "bert")
    weights = MTLServerModel.from_config(config(tmp_path, None, source=one)).encoder_for("sst2")
    with torch.no_grad():
        weights.encoder.layer[1].output.dense.bias[0] += 1
    weights.save_pretrained(other)
    saved(tmp_path, ADAPTERS, source=one)
    said = refusal(tmp_path, ADAPTERS, source=other)
    assert "are made for other weights than those of model.server_model" in said
    assert "encoder.encoder.layer.1.output.dense.bias is the first of 1 tensors that differ" in said


def test_a_frozen_a_of_another_seed_is_another_base(tmp_path):
    source = save(tmp_path / "one", "bert")
    saved(tmp_path, {"rank": 2}, source=source)
    said = refusal(tmp_path, {"rank": 2}, source=source, seed=2)
    assert ".lora_A.weight is the first of 12 tensors that differ" in said
    assert "depend on training.seed" in said


def test_doctor_looks_at_the_settings_too(tmp_path):
    saved(tmp_path, ADAPTERS)
    good, other = (config(tmp_path, ADAPTERS | more, tmp_path / "first") for more in ({}, {"rank": 3}))
    parts = MTLServerModel.from_config(good).parts
    assert isinstance(parts, ModelParts)
    assert examine_start(good, parts).startswith("the model of round 0 of the run in")
    with pytest.raises(ConfigError, match="rank: expected 2, got 3"):
        examine_start(other, parts)
