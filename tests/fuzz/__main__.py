"""`python -m tests.fuzz`: look for inputs that do harm, guided by which code they reach (atheris, libFuzzer)."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chunks", "layout", "encodings", "header", "config")
ANY = "any"
HANGS_AFTER_S = 10
MOST_MEMORY_MB = 2048


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*NAMES, ANY, []], help="what to fuzz; all if not given")
    parser.add_argument("--seconds", type=int, default=480, help="how long, all of them together")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="where corpora and findings go")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices; 0 for one by the clock")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("atheris isn't installed: it has wheels for Linux on x86-64 only", file=sys.stderr)
        return 2
    names = options.targets or NAMES
    if options.in_this_process:
        _fuzz(names[0], options.seconds, options.folder, options.seed)
    failed = [name for name in names if _run(name, max(1, options.seconds // len(names)), options)]
    for name in failed:
        print(f"{name}: see {options.folder / name}, and docs/security.md for what to do", file=sys.stderr)
    return 1 if failed else 0


def _run(name: str, seconds: int, options: argparse.Namespace) -> bool:
    """Fuzz one target in a process of its own; whether anything was found."""
    command = [sys.executable, "-m", "tests.fuzz", name, "--in-this-process", f"--seconds={seconds}"]
    command += [f"--folder={options.folder}", f"--seed={options.seed}"]
    folder = options.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    lines = (folder / "log.txt").read_text(errors="replace").splitlines()
    done = [line for line in lines if line.startswith("Done ")]
    print(f"{name}: {done[-1] if done else f'exit code {code}'}", flush=True)
    if code:
        print("\n".join(lines[-40:]), file=sys.stderr)
    return code != 0


def _fuzz(name: str, seconds: int, folder: Path, seed: int) -> None:
    import atheris

    # What is instrumented has to be imported in here; torch and protobuf are native, and would only slow it down.
    with atheris.instrument_imports(include=["fedmtl_core", "yaml"]):
        from tests.fuzz import targets
    import tracemalloc

    target = targets.ANY if name == ANY else targets.TARGETS[name]
    tracemalloc.start()
    corpus, seeds, findings = (folder / name / part for part in ("corpus", "seeds", "found"))
    corpus.mkdir(parents=True, exist_ok=True)
    findings.mkdir(exist_ok=True)
    shutil.rmtree(seeds, ignore_errors=True)
    seeds.mkdir()
    for number, data in enumerate(target.seeds()):
        (seeds / f"{number:02}").write_bytes(data)
    arguments = [
        f"-max_total_time={seconds}",
        f"-max_len={target.max_bytes}",
        f"-timeout={HANGS_AFTER_S}",
        f"-rss_limit_mb={MOST_MEMORY_MB}",
        f"-artifact_prefix={findings}/",
        "-print_final_stats=1",
        *([f"-seed={seed}"] if seed else []),
        str(corpus),
        str(seeds),
    ]
    atheris.Setup([sys.argv[0], *arguments], target.run)
    atheris.Fuzz()  # ends the process


if __name__ == "__main__":
    sys.exit(main())
