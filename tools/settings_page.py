"""`python -m tools.settings_page`: write docs/reference/configuration.md from the configuration, or check it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from fedmtl_core.config import Setting, reference, section_purposes
from tools.pages import write_or_check

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "configuration.md"


class Question(NamedTuple):
    """A user's question, the keys that answer it, and the pages of `docs/` that explain them."""

    question: str
    keys: tuple[str, ...]
    pages: tuple[str, ...]


QUESTIONS = (
    Question(
        "My rows are in my own files",
        (
            "tasks.NAME.type",
            "tasks.NAME.labels",
            "tasks.NAME.text_columns",
            "tasks.NAME.label_column",
            "tasks.NAME.data.train",
            "tasks.NAME.data.validation",
        ),
        ("data", "tutorial"),
    ),
    Question(
        "I want my own code in a run",
        (
            "tasks.NAME.data.plugin",
            "training.trainer",
            "tasks.NAME.type",
            "aggregation.rule",
            "aggregation.task_weighting",
            "server_optimizer.name",
            "rounds.task_selection",
            "sharing.adaptive.policy",
        ),
        ("plugins", "aggregation", "sharing", "task-selection"),
    ),
    Question("I have texts without labels", ("tasks.NAME.type", "tasks.NAME.auxiliary.weight"), ("auxiliary",)),
    Question(
        "I want another encoder",
        ("model.server_model", "model.num_hidden_layers", "model.pooling", "training.max_length"),
        ("encoders",),
    ),
    Question(
        "I want to continue from another run's model",
        ("model.from_run", "sharing.layers", "training.learning_rate"),
        ("encoders",),
    ),
    Question(
        "My clients differ in their labels or texts",
        (
            "training.proximal_mu",
            "training.control_variates",
            "sharing.head",
            "sharing.norms",
            "server_optimizer.name",
        ),
        ("aggregation", "sharing"),
    ),
    Question(
        "My clients differ in their numbers of rows",
        ("aggregation.normalization", "robustness.max_client_share", "tasks.NAME.max_examples"),
        ("aggregation",),
    ),
    Question(
        "One task is tiny",
        (
            "sharing.mode",
            "sharing.layers",
            "sharing.groups",
            "aggregation.task_weighting",
            "tasks.NAME.local_epochs",
            "tasks.NAME.auxiliary.weight",
        ),
        ("sharing", "auxiliary", "aggregation"),
    ),
    Question(
        "My tasks harm one another",
        (
            "sharing.mode",
            "aggregation.task_weighting",
            "sharing.layers",
            "sharing.groups",
            "sharing.schedule[].layers",
            "sharing.adaptive.policy",
        ),
        ("sharing", "aggregation"),
    ),
    Question(
        "One client has rows for several tasks",
        ("clients[].tasks", "client.tasks", "client.selection", "rounds.task_selection"),
        ("task-selection",),
    ),
    Question(
        "Uploads or downloads are too large",
        ("wire.upload", "wire.download", "wire.compression", "wire.topk_density"),
        ("traffic", "performance"),
    ),
    Question(
        "A client is slow",
        (
            "rounds.deadline_s",
            "tasks.NAME.deadline_s",
            "rounds.cohort",
            "rounds.cohort_size",
            "rounds.cohort_extra",
            "rounds.mode",
            "rounds.buffer_size",
            "rounds.max_staleness",
        ),
        ("rounds",),
    ),
    Question(
        "Training takes too long on a client",
        (
            "training.train_sampling_strategy",
            "training.max_length",
            "training.device",
            "client.num_threads",
            "tasks.NAME.train_samples",
        ),
        ("performance",),
    ),
    Question(
        "I want fewer rounds",
        (
            "training.num_rounds",
            "training.local_epochs",
            "training.learning_rate",
            "aggregation.scaling",
            "server_optimizer.name",
            "early_stopping.patience",
        ),
        ("aggregation", "rounds"),
    ),
    Question(
        "I want fewer clients in each round",
        ("rounds.cohort", "rounds.cohort_fraction", "rounds.cohort_size"),
        ("rounds",),
    ),
    Question(
        "A client may fail or leave",
        (
            "tasks.NAME.min_clients",
            "rounds.rejoin_grace_s",
            "rounds.quorum_timeout_s",
            "rounds.on_missing_quorum",
            "client.reconnect_s",
            "client.state_dir",
        ),
        ("rounds", "durability"),
    ),
    Question(
        "I want to resume after a crash",
        ("store.durability", "store.keep_checkpoints", "store.url", "server.runs_dir", "client.state_dir"),
        ("durability",),
    ),
    Question(
        "Only my clients may connect",
        (
            "security.tls.certificate",
            "security.tls.key",
            "security.tls.client_ca",
            "security.authentication",
            "client.tls_ca",
            "client.tls_certificate",
            "client.tls_key",
            "client.token_file",
        ),
        ("security",),
    ),
    Question(
        "Updates may be malicious or broken",
        (
            "robustness.norms.action",
            "robustness.norms.bound",
            "robustness.norms.median_factor",
            "robustness.max_client_share",
            "tasks.NAME.max_examples",
            "aggregation.rule",
        ),
        ("security", "aggregation"),
    ),
    Question(
        "Memory is short",
        (
            "server.staging_memory_mb",
            "sharing.adaptive.max_parameters",
            "limits.downloads",
            "model.num_hidden_layers",
            "training.per_device_train_batch_size",
            "training.max_length",
        ),
        ("performance",),
    ),
    Question(
        "I want to watch a run",
        ("tracking.report_to", "server.metrics_port", "tracing.enabled", "rounds.report_interval_s"),
        ("trackers",),
    ),
    Question(
        "I want to simulate clients with one data set",
        ("clients[].shard", "clients[].partition.dirichlet"),
        ("data",),
    ),
)

_INTRODUCTION = """\
# Configuration

<!-- Written from fedmtl_core/config by `make settings`. Not to be edited. -->

This page lists every key of the YAML file that `fedmtl-server`, `fedmtl-client` and `fedmtl-local` take as `--config`.
All three programs accept the same file. The option `--set KEY=VALUE` overrides a key, and `--help-config` prints this
list in a terminal.

- Every key is optional unless its default is `required`. An unknown key is an error that names the key.
- Relative paths are resolved against the working directory, not the configuration file.
- The column *read by* names the programs that use a key: `fedmtl-server`, `fedmtl-client` or the launcher
  `fedmtl-local`. Every program validates the whole file, and `doctor` may check more keys.
- The server sends its training settings to clients in each slice's header. A client's own value of a key that only the
  server reads has no effect. If a client's own file gives `model.server_model`, `model.client_model`,
  `tasks.NAME.train_samples` or `tasks.NAME.val_samples`, the client uses its own value.
- The launcher passes its file to the server and to all clients that it starts, unless `clients[].config` names
  another file.
- The file is YAML 1.1, which reads `no` and `off` as false, `12:30` as the number 750 and `0777` as 511. FedMTL refuses
  such values where it expects a number or text, and the error names the file, the line and the value. `1e-3`, `1_000`,
  `0x1F` and numbers in quotes are accepted as numbers.

## Keys by question

"""


def render(settings: Sequence[Setting]) -> str:
    """Return the page: keys by question, then a table of keys, defaults, readers and meanings for each section."""
    purposes = section_purposes()
    sections = ("\n".join(_section(name, purposes, group)) for name, group in groupby(settings, key=_section_of))
    return "\n\n".join([_INTRODUCTION + "\n".join(_questions()), *sections]) + "\n"


def linked(text: str) -> str:
    """Turn the name of a page, such as docs/wire.md, into a link from this page."""
    return re.sub(r"\bdocs/([a-z-]+)\.md", r"[\1](../\1.md)", text)


def _questions() -> Iterator[str]:
    yield from ("| question | keys | explanation |", "| --- | --- | --- |")
    for one in QUESTIONS:
        keys = ", ".join(f"`{key}`" for key in one.keys)
        pages = ", ".join(f"[{page}](../{page}.md)" for page in one.pages)
        yield f"| {one.question} | {keys} | {pages} |"


def _section_of(setting: Setting) -> str:
    return setting.key.rpartition(".")[0]


def _section(name: str, purposes: Mapping[str, str], settings: Iterator[Setting]) -> Iterator[str]:
    yield from (f"## {name}", "", linked(purposes[name]), "")
    yield from ("| key | default | read by | meaning |", "| --- | --- | --- | --- |")
    for setting in settings:
        default = f"`{setting.default}`" if setting.default else ""
        yield f"| `{setting.key}` | {default} | {', '.join(setting.read_by)} | {linked(setting.description)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the page."""
    return write_or_check(
        arguments,
        module="tools.settings_page",
        purpose=__doc__ or "",
        page=PAGE,
        render=lambda: render(reference()),
        target="settings",
    )


if __name__ == "__main__":
    sys.exit(main())
