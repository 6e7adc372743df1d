"""A client's checks before the start: credentials, rows, model, and a server that accepts the client."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Literal

from fedmtl_client.model_doctor import encoder, own_parameters
from fedmtl_core.config import Config, DataConfig
from fedmtl_core.errors import ConfigError, RequestError
from fedmtl_core.runtime import doctor
from fedmtl_core.runtime.doctor import Finding, fail, ok, warn
from fedmtl_core.tasks.labels import listing
from fedmtl_core.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from fedmtl.v1 import federation_pb2 as pb

    from fedmtl_client.api import FederationApi
    from fedmtl_client.data import Survey
    from fedmtl_client.slices import ServerBase
    from fedmtl_core.tasks.plan import TrainingPlan

Split = Literal["train", "validation"]
_SPLITS: tuple[Split, ...] = ("train", "validation")

MAX_SKEW_S = 60.0
"""The largest lead of the server's clock, in seconds, that gives no warning."""
_SHOWN = 5
MAX_TOKENIZED = 10_000
"""At most this many rows, at regular intervals, are tokenized."""
_MANY_CUT = 0.05
"""A larger share of truncated rows gives a warning."""


def examine(
    config: Config,
    *,
    client_id: str,
    sources: Sequence[tuple[TaskSpec, DataConfig | None]],
    shard: tuple[int, int],
    model: str | None,
    server: str,
) -> list[Finding]:
    """Run all checks of a client.

    Args:
        config: the client's configuration, with its own credential files in the section `client`.
        client_id: the client's name.
        sources: the client's tasks with the location of their rows; None for the task's data set on the hub.
        shard: `(K, N)` for the client's part of the rows.
        model: name or folder of the client's model; from the server's plan if None.
        server: `HOST:PORT`.
    """
    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "device": lambda: device(config),
        "credentials": lambda: credentials(config, server),
        "proxy": lambda: proxy(server),
    }
    surveys: dict[str, Survey] = {}
    names = {
        (spec, split): f"{spec.name}: {split} rows" if len(sources) > 1 else f"{split} rows"
        for spec, _ in sources
        for split in _SPLITS
    }
    for spec, source in sources:
        for split in _SPLITS:
            name = names[spec, split]
            checks[name] = partial(rows, spec, source, split, shard, name, surveys)
    found = [finding for name, check in checks.items() for finding in doctor.findings(name, check)]
    plans: list[TrainingPlan] = []
    bases: list[ServerBase] = []
    specs = [spec for spec, _ in sources]
    found += doctor.findings("server", lambda: reach(config, client_id, specs, server, plans, bases))
    planned = plans[0].client_model if plans else ""
    if source_of_model := model or planned:
        found += (of_tokenizer := doctor.findings("tokenizer", lambda: doctor.tokenizer(source_of_model, specs)))
        usable = not doctor.has_failed(of_tokenizer)
        max_length = (plans[0] if plans else config.training).max_length
        for (spec, _), name in names.items():
            if usable and name in surveys:
                found += doctor.findings(name, partial(lengths, spec, surveys[name], source_of_model, max_length, name))
        if plans and usable:
            found += doctor.findings("encoder", partial(encoder, config, plans[0], source_of_model, specs, *bases))
    else:
        found.append(
            warn(
                "tokenizer",
                "not checked: the server names the tokenizer, and it wasn't reached",
                "fix the finding of `server` first",
            )
        )
    if plans and plans[0].local:
        found += doctor.findings("own parameters", partial(own_parameters, config, plans[0], source_of_model))
    return found


def device(config: Config) -> Iterator[Finding]:
    """Check that this machine has the configured device."""
    from fedmtl_client.trainer import choose_device

    chosen = choose_device(config.training.device)
    yield ok("device", str(chosen))


def rows(
    spec: TaskSpec,
    source: DataConfig | None,
    split: Split,
    shard: tuple[int, int],
    check: str | None = None,
    surveys: dict[str, Survey] | None = None,
) -> Iterator[Finding]:
    """Check that one split can be read and that its rows fit the task.

    Args:
        surveys: receives the split's statistics under the check's name.
    """
    from fedmtl_client.data import survey

    seen, name = survey(spec, source, split), check or f"{split} rows"
    if surveys is not None:
        surveys[name] = seen
    yield from judge(spec, seen, name, shard)


def judge(spec: TaskSpec, seen: Survey, check: str, shard: tuple[int, int]) -> Iterator[Finding]:
    """Yield the findings for the rows of one split."""
    from fedmtl_client.targets import matched_by_name

    for setting, count in seen.dropped.items():
        yield ok(check, f"{count:,} rows are dropped by tasks.{spec.name}.data.{setting}")
    part, whole = shard
    mine = len(range(part - 1, seen.num_rows, whole))
    if mine == 0:
        yield fail(check, f"shard {part}/{whole} of {seen.num_rows} rows is empty", "use fewer shards (--shard)")
        return
    columns = ", ".join((*spec.text_columns, *([spec.label_column] if spec.is_labelled else [])))
    of_all = f" of {seen.num_rows:,}" if whole > 1 else ""
    yield ok(check, f"{mine:,}{of_all}, using the columns {columns}{_shares(spec, seen)}")
    if seen.class_names:
        matched = "name" if matched_by_name(spec, seen.class_names) else "number"
        yield ok(check, f"the source declares the classes {listing(seen.class_names)}; matched by {matched}")
    if seen.unknown:
        expected = f"one of {listing(spec.labels)}" if spec.labels else "a finite number"
        yield fail(
            check,
            f"{spec.label_column}: expected {expected}; {_counted(seen.unknown)}",
            f"fix these rows, or tasks.{spec.name}.{'labels' if spec.labels else 'label_column'}",
        )
    if seen.out_of_range and spec.value_range:
        yield fail(
            check,
            f"{spec.label_column}: {sum(seen.out_of_range.values()):,} rows have a score outside "
            f"{_range(*spec.value_range)} (from {_range(min(seen.out_of_range), max(seen.out_of_range))}): "
            f"{_counted({f'{number:g}': count for number, count in seen.out_of_range.items()})}",
            f"fix these rows, or set tasks.{spec.name}.value_range or tasks.{spec.name}.data.out_of_range: drop",
        )
    if missing := [label for label in spec.labels if not seen.labels.get(label)]:
        yield warn(
            check,
            f"no row has the label {listing(missing)}",
            f"check that the rows and tasks.{spec.name}.labels spell it the same way",
        )
    if seen.num_empty:
        yield warn(
            check,
            f"{seen.num_empty:,} rows have an empty text",
            "they are used for training and evaluation; remove them if they are errors",
        )


def lengths(spec: TaskSpec, seen: Survey, model: str, max_length: int, check: str) -> Iterator[Finding]:
    """Count the rows of one split that `max_length` truncates.

    Yields nothing for a task type that tokenizes with targets, or for a tokenizer that doesn't report truncation.

    Args:
        model: name or folder of the encoder's tokenizer.
        max_length: longest input in tokens.
    """
    from fedmtl_core.model.modeling import load_tokenizer
    from fedmtl_core.tasks.kinds import CUT, TaskKind
    from fedmtl_core.tasks.registry import kind_of

    kind = kind_of(spec)
    if not seen.num_rows or (spec.is_labelled and type(kind).encode is not TaskKind.encode):
        return
    texts = seen.texts[:: math.ceil(seen.num_rows / MAX_TOKENIZED)]
    columns = kind.encode(texts, [None] * len(texts), load_tokenizer(model), max_length)
    if CUT not in columns:
        return
    count = sum(columns[CUT])
    share = count / len(texts)
    sampled = "" if len(texts) == seen.num_rows else " sampled"
    found = f"{count:,} of {len(texts):,}{sampled} rows ({share:.1%}) are cut at {max_length} tokens"
    advice = "raise training.max_length in the server's configuration if the end of a text matters"
    yield warn(check, found, advice) if share > _MANY_CUT else ok(check, found)


def _shares(spec: TaskSpec, seen: Survey) -> str:
    if not spec.labels:
        return ""
    return "; " + ", ".join(f"{label} {seen.labels.get(label, 0):,}" for label in spec.labels[:_SHOWN])


def _range(lowest: float, highest: float) -> str:
    return f"{lowest:g} to {highest:g}"


def _counted(unknown: Mapping[str, int]) -> str:
    """Describe values with their numbers of rows, the most frequent first."""
    most = Counter(unknown).most_common()
    shown = ", ".join(f"{value[:40]!r} in {count:,} rows" for value, count in most[:_SHOWN])
    return f"got {shown}" + (f" and {len(most) - _SHOWN} other values" if len(most) > _SHOWN else "")


def credentials(config: Config, server: str) -> Iterator[Finding]:
    """Check the client's credential files, and that no connection reaches another machine unencrypted by accident."""
    from fedmtl_client.credentials import load
    from fedmtl_core.addresses import host_of, is_loopback
    from fedmtl_core.runtime import pem

    shown = load(config)
    shown.require_safe(server)
    files = config.client
    parts = ["TLS" if shown.ca else "no TLS"]
    parts += ["a certificate"] if shown.certificate else []
    parts += ["a token"] if shown.token else []
    exposed = shown.ca is None and not is_loopback(host_of(server))
    found = ", ".join(parts)
    if exposed:
        yield warn(
            "credentials",
            f"{found}: anyone on the network can read and change the traffic",
            "use TLS (--tls-ca) unless you trust the network",
        )
    else:
        yield ok("credentials", found)
    for setting, path in (("client.tls_ca", files.tls_ca), ("client.tls_certificate", files.tls_certificate)):
        if path is not None:
            certificate = pem.read_certificates(setting, path)[1]
            pem.require_valid_now(setting, path, certificate)
            yield from doctor.expiry("credentials", path, certificate)


def proxy(server: str) -> Iterator[Finding]:
    """Warn if the environment makes gRPC connect through a proxy."""
    from fedmtl_core.addresses import host_of
    from fedmtl_core.runtime.proxies import proxy_of

    between = proxy_of(host_of(server))
    if between is not None:
        yield warn("proxy", str(between), "ignore this if the server can be reached only through the proxy")


def reach(
    config: Config,
    client_id: str,
    specs: Sequence[TaskSpec],
    server: str,
    plans: list[TrainingPlan],
    bases: list[ServerBase],
) -> Iterator[Finding]:
    """Check that the server answers, accepts this client, and has the same tasks.

    Args:
        plans: receives the server's training plans, one for each task that it accepts the client for.
        bases: receives the server's base if the run has adapters.
    """
    from fedmtl_client.api import ConnectionSettings, FederationApi
    from fedmtl_client.credentials import load

    connection = ConnectionSettings(load(config))
    api = FederationApi(server, client_id=client_id, task=specs[0].name, reconnect_s=0, connection=connection)
    with closing(api):
        yield from health(api)
        status = api.get_status()
        yield ok("server", f"{server} is at round {status.round} of {status.num_rounds}{_waiting(status)}")
        yield from clock(status, time.time())
        if any(one.client_id == client_id and one.connected for one in status.clients):
            yield warn(
                "client id",
                f"a client {client_id!r} is connected already",
                "this client would replace it; choose another --client-id unless it is the same client",
            )
        for spec in specs:
            yield from task(api, client_id, spec, plans)
        if plans and plans[0].adapters is not None:
            bases.append(api.describe_base())


def task(api: FederationApi, client_id: str, spec: TaskSpec, plans: list[TrainingPlan]) -> Iterator[Finding]:
    """Check that the server accepts the client for a task, and defines the task in the same way."""
    try:
        plan = api.get_plan(spec.name)
        plans.append(plan)
        if plan.task_type is not None:
            spec.require_same(plan.task_type, plan.labels)
    except (RequestError, ConfigError) as error:
        yield fail("task", str(error))
        return
    same = "labels" if spec.labels else "type"
    yield ok("task", f"the server has {spec.name} with the same {same}, and accepts {client_id} for it")


def health(api: FederationApi) -> Iterator[Finding]:
    """Report gRPC's health check; a stopping server reports that it isn't serving."""
    if api.is_serving():
        yield ok("health", "serving")
    else:
        yield warn("health", "the server isn't serving at the moment", "it is starting or stopping; try again")


def clock(status: pb.GetStatusResponse, now: float) -> Iterator[Finding]:
    """Warn if the server's clock is ahead, judged by the end of the last round: certificates depend on clocks.

    Args:
        status: the server's status.
        now: this machine's time, in seconds since 1970.
    """
    if not status.HasField("last_report"):
        return
    report = status.last_report
    ahead_s = report.opened_at_unix_ms / 1000 + report.duration_seconds - now
    if ahead_s > MAX_SKEW_S:
        yield warn(
            "clock",
            f"the server's clock is at least {ahead_s:.0f} s ahead of this machine's",
            "synchronize both clocks with NTP",
        )


def _waiting(status: pb.GetStatusResponse) -> str:
    return f", waiting for {status.waiting_for}" if status.waiting_for else ""
