"""A dry run of written files: they are loaded, and each site's rows are read, matched with labels and tokenized."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmtl_core import config as configuration
from fedmtl_core.config import Config, parse_shard
from fedmtl_core.errors import ConfigError
from fedmtl_core.runtime import doctor
from fedmtl_core.runtime.doctor import Finding
from fedmtl_local.new.federation import FEDERATION_FILE, client_path

if TYPE_CHECKING:
    from fedmtl_client.data import Survey
    from fedmtl_core.tasks.spec import TaskSpec

BATCH_ROWS = 32
"""A batch is made of so many first rows."""


def local_tokenizer(encoder: str) -> Any | None:
    """An encoder's tokenizer; None if the encoder is on the model hub, which isn't asked.

    Raises:
        ModelUnavailableError: the encoder is to be on this machine, and isn't, or has no tokenizer.
    """
    from fedmtl_core.model.encoders import TOY_MODEL, is_on_this_machine, load_tokenizer, locate

    if encoder != TOY_MODEL:
        locate(encoder)
    return load_tokenizer(encoder) if is_on_this_machine(encoder) else None


def most_positions(encoder: str) -> int | None:
    """The longest input in tokens of an encoder on this machine; None if its configuration gives no number."""
    from fedmtl_core.model.encoder_check import longest_input
    from fedmtl_core.model.encoders import load_encoder

    return longest_input(load_encoder(encoder, weights=False)[0])


def dry_run(folder: Path, sites: Sequence[str], tokenizer: Any | None) -> list[Finding]:
    """What was found in the files of a federation.

    Args:
        folder: has the files.
        sites: the clients.
        tokenizer: the encoder's; texts aren't tokenized and the encoder isn't looked at if None.

    Raises:
        ConfigError: a file can't be loaded.
    """
    server = configuration.load(folder / FEDERATION_FILE)
    found: list[Finding] = []
    for site in sites:
        client = configuration.load(folder / client_path(site))
        for task in client.tasks:
            found += _task(server, client, site, task, tokenizer)
    if tokenizer is not None:
        found += doctor.findings("encoder", partial(_encoder, server))
    return found


def _task(server: Config, client: Config, site: str, task: str, tokenizer: Any | None) -> Iterator[Finding]:
    """One site's rows of a task."""
    from fedmtl_client import doctor as client_doctor
    from fedmtl_client.overlap import shared_texts

    section, plan = client.tasks[task], server.plan(task)
    spec = section.spec(task)
    spec.require_same(plan.task_type or "", plan.labels)
    shard = parse_shard(client.clients[0].shard)
    surveys: dict[str, Survey] = {}
    for split in ("train", "validation"):
        name = f"{site}: {task}, {split} rows"
        look = partial(client_doctor.rows, spec, section.data, split, shard, name, surveys)
        found = doctor.findings(name, look)
        yield from found
        if split == "validation" and len(surveys) == 2:
            train, validation = (one.texts for one in surveys.values())
            yield from shared_texts(train, validation, name)
        if tokenizer is None or doctor.has_failed(found):
            continue
        yield from doctor.findings(
            name, partial(client_doctor.lengths, spec, surveys[name], plan.client_model, plan.max_length, name)
        )
        yield from doctor.findings(name, partial(_batch, spec, surveys[name], tokenizer, plan.max_length, name))


def _batch(spec: TaskSpec, seen: Survey, tokenizer: Any, max_length: int, check: str) -> Iterator[Finding]:
    """Make a batch of a split's first rows."""
    from fedmtl_client.data import EncodedRows, Rows

    texts = seen.texts[:BATCH_ROWS]
    rows = EncodedRows(Rows(texts, [0 if spec.is_labelled else None] * len(texts)), spec, tokenizer, max_length)
    try:
        inputs, _ = rows.collator(0)([rows[number] for number in range(len(rows))])
    except (ValueError, TypeError) as error:
        raise ConfigError(f"a batch of the first rows can't be made: {error}") from None
    shape = " x ".join(map(str, inputs["input_ids"].shape))
    yield doctor.ok(check, f"a batch of the first {len(texts)} rows has {shape} tokens")


def _encoder(server: Config) -> Iterator[Finding]:
    """Check the architecture of an encoder on this machine with the training plan. Weights aren't read."""
    from fedmtl_client import model_doctor

    specs = server.task_specs()
    yield from model_doctor.encoder(server, server.plan(specs[0].name), server.model.server_model, specs)
