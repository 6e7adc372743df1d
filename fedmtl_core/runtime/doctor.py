"""Checks before a start: whether this machine has everything that a server or a client needs.

A check inspects one thing and yields findings; it changes nothing. This module has the checks of both sides and the
output of findings. The other checks are in the `doctor.py` of the server and of the client.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.runtime_version import VersionError
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from fedmtl_core.errors import FedMTLError, first_line

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from fedmtl_core.config import Config
    from fedmtl_core.model.encoder_check import EncoderReport
    from fedmtl_core.tasks.spec import TaskSpec

DISTRIBUTION = "fedmtl"
GENERATED = ("fedmtl.v1.federation_pb2", "fedmtl.v1.federation_pb2_grpc")


class Level(StrEnum):
    """The severity of a finding."""

    ok = "ok"
    warn = "warn"
    """It works, but perhaps not as intended."""
    fail = "fail"
    """It won't work."""


@dataclass(frozen=True)
class Finding:
    """One result of a check."""

    level: Level
    check: str
    """The name of the check."""
    found: str
    advice: str = ""
    """What to do about it; empty if there is nothing to do, or `found` says it."""


Check = Callable[[], Iterable[Finding]]


def ok(check: str, found: str) -> Finding:
    return Finding(Level.ok, check, found)


def warn(check: str, found: str, advice: str = "") -> Finding:
    return Finding(Level.warn, check, found, advice)


def fail(check: str, found: str, advice: str = "") -> Finding:
    return Finding(Level.fail, check, found, advice)


def findings(name: str, look: Check) -> list[Finding]:
    """Run a check and return its findings. FedMTL errors and missing packages become failures.

    Args:
        name: the check's name for such a failure.
        look: the check.
    """
    found: list[Finding] = []
    try:
        found.extend(look())
    except FedMTLError as error:
        found.append(fail(name, str(error)))
    except ImportError as error:
        found.append(fail(name, f"a package can't be imported: {error}", "install FedMTL again: make install"))
    return found


def has_failed(found: Iterable[Finding]) -> bool:
    return any(one.level is Level.fail for one in found)


# Checks of both sides.


def environment() -> Iterator[Finding]:
    """Check Python, the packages that FedMTL requires, and the generated code."""
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        yield fail("packages", f"{DISTRIBUTION} isn't installed, so its requirements are unknown", "run make install")
    else:
        yield from python(distribution.metadata["Requires-Python"] or "")
        yield from packages(distribution.requires or ())
    yield from generated_code()


def python(required: str, version: str = platform.python_version()) -> Iterator[Finding]:
    """Check that a Python version is within bounds such as `>=3.11`."""
    if SpecifierSet(required).contains(version, prereleases=True):
        yield ok("python", version)
    else:
        yield fail("python", f"expected {required}, got {version}", f"install FedMTL with Python {required}")


def packages(requirements: Sequence[str]) -> Iterator[Finding]:
    """Check that installed packages are within their bounds; packages of extras aren't checked.

    Args:
        requirements: requirements such as `torch>=2.6`, in the form of `importlib.metadata`.
    """
    needed = [one for one in map(_requirement, requirements) if one is not None]
    bad = list(filter(None, map(_unmet, needed)))
    for requirement, version in bad:
        got = f"got {version}" if version else "but it isn't installed"
        yield fail(
            "packages",
            f"{requirement.name}: expected {requirement.specifier}, {got}",
            f"run pip install '{requirement}'",
        )
    if not bad:
        yield ok("packages", f"all {len(needed)} required packages are within their bounds")


def _requirement(text: str) -> Requirement | None:
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return None
    marker = requirement.marker
    is_for_here = marker is None or marker.evaluate({"extra": ""})
    return requirement if is_for_here else None


def _unmet(requirement: Requirement) -> tuple[Requirement, str] | None:
    """Return an unmet requirement with the installed version, empty if there is none; None if it is met."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return requirement, ""
    return None if requirement.specifier.contains(version, prereleases=True) else (requirement, version)


def generated_code(modules: Sequence[str] = GENERATED) -> Iterator[Finding]:
    """Check that the output of `make proto` works with the installed protobuf and gRPC.

    Generated modules refuse a runtime that is older than themselves when they are imported.
    """
    versions = ", ".join(f"{name} {_version(name)}" for name in ("protobuf", "grpcio"))
    for module in modules:
        try:
            importlib.import_module(module)
        except (ImportError, RuntimeError, TypeError, VersionError) as error:
            reason = first_line(error)
            yield fail(
                "generated code",
                f"{module} doesn't work with {versions}: {reason}",
                "run make proto, or make install",
            )
            return
    yield ok("generated code", f"fits {versions}")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(missing)"


# Files and disk space.


def writable(check: str, folder: Path) -> Iterator[Finding]:
    """Check that a folder can be written or created, with a temporary file in the folder or its nearest parent."""
    place = nearest(folder)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        yield fail(
            check,
            f"{folder}: can't write to {place}: {error.strerror or error}",
            "choose another folder, or change its permissions",
        )
    else:
        yield ok(
            check, f"{folder} is writable" + ("" if place == folder.absolute() else "; it is created at the start")
        )


def room(check: str, folder: Path, needed: int, what: str) -> Iterator[Finding]:
    """Check that a folder's disk has enough free space.

    Args:
        check: the check's name.
        folder: the folder, which need not exist yet.
        needed: number of bytes needed.
        what: the purpose of the bytes.
    """
    free = shutil.disk_usage(nearest(folder)).free
    found = f"{megabytes(free)} free, about {megabytes(needed)} needed: {what}"
    if free < needed:
        yield fail(check, found, "free disk space, or choose another folder")
    elif free < 2 * needed:
        yield warn(check, found, "less than twice the need is free; other files may use it up")
    else:
        yield ok(check, found)


def nearest(folder: Path) -> Path:
    """Return the folder, or its nearest existing parent."""
    folder = folder.absolute()
    return next(one for one in (folder, *folder.parents) if os.path.lexists(one))


def megabytes(num_bytes: int) -> str:
    """Return a size in GiB, MiB, or KiB for people."""
    if num_bytes >= 2**30:
        return f"{num_bytes / 2**30:.1f} GiB"
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes >= 2**20 / 10 else f"{num_bytes / 2**10:.1f} KiB"


# Models.


def model(config: Config) -> Iterator[Finding]:
    """Check that the server's encoder can be loaded, has weights, and can be trained as configured.

    Weights on this machine are read. From the hub, only the encoder's configuration is downloaded.
    """
    from fedmtl_core.model.encoder_check import Use, check_for_server
    from fedmtl_core.model.encoders import load_encoder, weights_of
    from fedmtl_core.model.pretrained import LoadedWeights

    source, layers = config.model.server_model, config.model.num_hidden_layers
    needs_weights = config.model.needs_weights
    loaded: list[LoadedWeights] = []
    where, has_weights = weights_of(source)
    encoder, _ = load_encoder(
        source,
        weights=has_weights,
        num_hidden_layers=layers,
        random_init=not needs_weights,
        on_weights=loaded.append,
    )
    size = sum(parameter.numel() for parameter in encoder.parameters())
    found = f"{source}: {size:,} parameters, {where}"
    if has_weights or not needs_weights:
        yield ok("model", found)
    elif where.startswith("on the hub"):
        yield warn("model", f"{found}; its weights aren't on this machine", "they will be downloaded at the start")
    else:
        yield fail("model", f"{found} without weights", "set model.random_init to true, or name a folder with weights")
    use = Use.by_tasks(source, config.training.max_length, config.model.pooling, config.task_specs())
    yield from remarks(check_for_server(use, config.model.client_model, encoder, loaded[0] if loaded else None))


def remarks(report: EncoderReport) -> Iterator[Finding]:
    """Yield the findings of an encoder check."""
    for one in report.remarks:
        yield (fail if one.is_error else warn)("encoder", one.found, one.advice)
    if not report.remarks and report.is_tried:
        yield ok("encoder", "it encodes texts of every length up to training.max_length, alone and padded")
    elif not report.remarks:
        yield ok("encoder", "not tried on texts, since its tokenizer isn't on this machine")


def tokenizer(source: str, specs: Iterable[TaskSpec] = ()) -> Iterator[Finding]:
    """Check that a model's tokenizer can be loaded and suits the tasks."""
    from fedmtl_core.model.modeling import load_tokenizer
    from fedmtl_core.tasks.registry import kind_of

    loaded = load_tokenizer(source)
    for spec in specs:
        kind_of(spec).require_tokenizer(loaded)
    yield ok("tokenizer", f"{source}: {len(loaded):,} tokens")


# Certificates.


def expiry(check: str, path: Path, certificate: Certificate) -> Iterator[Finding]:
    """Check that a valid certificate doesn't expire soon."""
    from fedmtl_core.runtime.pem import EXPIRES_SOON_DAYS

    ends = certificate.not_valid_after_utc
    days = (ends - datetime.now(UTC)).days
    found = f"{path} is valid until {ends:%Y-%m-%d} ({days} days)"
    yield warn(check, found, "renew it in time") if days < EXPIRES_SOON_DAYS else ok(check, found)


# Output of findings.

_COLORS: Mapping[Level, str] = {Level.ok: "green", Level.warn: "yellow", Level.fail: "bold red"}


def tell(found: Sequence[Finding], *, as_json: bool) -> None:
    """Print findings as JSON or for people."""
    if as_json:
        print(json.dumps(to_dicts(found), indent=2, ensure_ascii=False))
    else:
        show(found)


def show(found: Sequence[Finding]) -> None:
    """Print findings for people: one line each, followed by its advice."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    width = max((len(one.check) for one in found), default=0)
    for one in found:
        lines = one.found.splitlines() or [""]
        indent = " " * (width + 8)
        console.print(Text.assemble((f"{one.level:<4}", _COLORS[one.level]), f"  {one.check:<{width}}  {lines[0]}"))
        for line in lines[1:]:
            console.print(Text(indent + line))
        if one.advice:
            console.print(Text(f"{indent}→ {one.advice}"))
    counts = {level: sum(one.level is level for one in found) for level in Level}
    console.print(Text(f"{counts[Level.ok]} ok, {counts[Level.warn]} warnings, {counts[Level.fail]} failures"))


def to_dicts(found: Iterable[Finding]) -> list[dict[str, object]]:
    """Convert findings to dictionaries."""
    return [asdict(one) for one in found]
