"""`python -m tools.same_bits REV_A REV_B`: compare the results of two revisions bit by bit.

The tool runs the same small federations with the code of each revision, and compares all checkpoints and round reports.
The exit code is 0 if all are equal, 1 if anything differs or a federation fails, and 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tools.same_bits import comparing, readings
from tools.same_bits.federation import Federation
from tools.same_bits.processes import FederationError, Nursery
from tools.same_bits.revisions import UnknownRevisionError, checked_out, commit_of, is_between, lacking
from tools.same_bits.scenario import Scenario
from tools.same_bits.scenarios import SCENARIOS

SIDES = ("A", "B")
STOPPING = (signal.SIGINT, signal.SIGTERM)

Reading = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two revisions, and return the exit code."""
    options = _options(arguments)
    if options.list:
        print("\n".join(scenario.name for scenario in SCENARIOS))
        return 0
    try:
        with _folder(options.keep) as folder:
            return _compare(options, folder)
    except UnknownRevisionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 128 + signal.SIGINT


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m tools.same_bits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("revisions", nargs="*", metavar="REV", help="two commits; `.` is the current working tree")
    parser.add_argument(
        "--only", action="append", metavar="NAME", choices=names, help="run only this scenario; repeat for more"
    )
    parser.add_argument("--list", action="store_true", help="list the scenarios and exit")
    parser.add_argument(
        "--jobs", type=int, default=2, metavar="N", help="number of federations to run at once (default: 2)"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep the runs, logs and compared values in this new folder"
    )
    parser.add_argument(
        "--renamed",
        action="append",
        default=[],
        type=_pair,
        metavar="OLD=NEW",
        help="a key's name in A and in B, such as `contributions[].num_examples=contributions[].examples`; repeatable",
    )
    options = parser.parse_args(arguments)
    if not options.list and len(options.revisions) != len(SIDES):
        parser.error(f"expected two revisions, got {len(options.revisions)}")
    if options.jobs < 1:
        parser.error(f"--jobs: expected at least 1, got {options.jobs}")
    if options.keep is not None and options.keep.exists():
        parser.error(f"--keep: {options.keep} exists; name a new folder")
    return options


def _pair(text: str) -> tuple[str, str]:
    old, separator, new = text.partition("=")
    if not (old and separator and new) or old.count("[]") != new.count("[]"):
        raise argparse.ArgumentTypeError(f"expected OLD=NEW with the same number of [] on both sides, got {text!r}")
    return old, new


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="same-bits-") as folder:
        yield Path(folder)


def _compare(options: argparse.Namespace, folder: Path) -> int:
    commits = [commit_of(revision) for revision in options.revisions]
    renamed = (*comparing.RENAMED, *options.renamed)
    began = time.monotonic()
    num_different = 0
    accepted = Counter[comparing.Change]()
    changes = [change for change in comparing.CHANGES if is_between(change.since, *commits)]
    seen: dict[tuple[str, str], Reading] = {}
    with ExitStack() as stack:
        files = [
            stack.enter_context(checked_out(commit, folder / f"revision-{side}"))
            for side, commit in zip(SIDES, commits, strict=True)
        ]
        chosen = _chosen(options.only, files)
        futures = stack.enter_context(_running(chosen, files, folder, options.jobs))
        for scenario in chosen:
            try:
                pair = [futures[scenario.name, side].result() for side in SIDES]
            except FederationError as error:
                num_different += 1
                print(f"{scenario.name}: failed\n{error}", flush=True)
                continue
            seen |= {(scenario.name, side): reading for side, reading in zip(SIDES, pair, strict=True)}
            comparison = comparing.compare(*pair, renamed=renamed, changes=changes)
            problems = [*comparing.summarized(comparison.differences), *_unlike(scenario, seen)]
            num_different += bool(problems)
            accepted.update(comparison.accepted)
            print(_summary(scenario, pair, problems), flush=True)
    for change, count in accepted.items():
        print(f"changed by {change.since}: {change.names}, {count} values: {change.why}")
    what = "all equal" if not num_different else f"{num_different} differ"
    print(f"{len(chosen)} scenarios, {what}, {time.monotonic() - began:.0f} s")
    return 1 if num_different else 0


def _chosen(only: Sequence[str] | None, files: Sequence[Path]) -> list[Scenario]:
    """Return the requested scenarios whose configuration keys both revisions have."""
    chosen = []
    for scenario in SCENARIOS:
        if not only or scenario.name in only:
            missing = {key for one in files for key in lacking(one, scenario.needs)}
            if missing:
                print(f"{scenario.name}: skipped: keys missing in a revision: {', '.join(sorted(missing))}", flush=True)
            else:
                chosen.append(scenario)
    return chosen


@contextmanager
def _running(
    chosen: Sequence[Scenario], files: Sequence[Path], folder: Path, jobs: int
) -> Iterator[Mapping[tuple[str, str], Future[Reading]]]:
    """Run all federations, up to `jobs` at once. On exit, stop the federations that have not ended."""
    with ExitStack() as stack:
        nurseries = {side: stack.enter_context(Nursery(one)) for side, one in zip(SIDES, files, strict=True)}
        pool = ThreadPoolExecutor(jobs)
        try:
            yield {
                (scenario.name, side): pool.submit(_run, scenario, nurseries[side], folder / side / scenario.name)
                for scenario in chosen
                for side in SIDES
            }
        finally:
            for nursery in nurseries.values():
                nursery.close()  # raises an error in threads that wait for one of its processes
            pool.shutdown(cancel_futures=True)


def _run(scenario: Scenario, nursery: Nursery, folder: Path) -> Reading:
    Federation(scenario, nursery, folder).run()
    reading = readings.read(folder, killed=None in scenario.steps)
    (folder / "reading.json").write_text(json.dumps(reading, indent=1), encoding="utf-8")
    return reading


def _unlike(scenario: Scenario, seen: Mapping[tuple[str, str], Reading]) -> list[str]:
    """Return the differences of a scenario's checkpoints from those of its `same_as` scenario, for each revision."""
    problems = []
    for side in SIDES:
        mine, other = seen[scenario.name, side], seen.get((scenario.same_as, side))
        if other is not None:
            found = comparing.compare(readings.checkpoints(other), readings.checkpoints(mine)).differences
            problems += [f"in {side}, with {scenario.same_as} as A: {one}" for one in comparing.summarized(found)]
    return problems


def _summary(scenario: Scenario, pair: Sequence[Reading], problems: Sequence[str]) -> str:
    a = pair[0]
    counts = f"{len(a['files'])} files, {len(a['rounds'])} rounds"
    if not problems:
        return f"{scenario.name}: equal: {counts}, {readings.digest_of(a['files'])[:16]}"
    return "\n".join([f"{scenario.name}: differs: {counts}", *(f"  {problem}" for problem in problems)])


def _stop(*_: object) -> None:
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)  # the cleanup must not be interrupted
    raise KeyboardInterrupt


if __name__ == "__main__":
    for stopping in STOPPING:
        signal.signal(stopping, _stop)
    sys.exit(main())
