"""The example clients: where each is, what it needs, and its processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests" / "vectors"


@dataclass(frozen=True)
class Language:
    """One example client."""

    name: str
    built: str
    """What `make examples` leaves, relative to the repository."""
    tools: tuple[str, ...]
    """Commands without which it can't be built or run."""
    runner: tuple[str, ...] = ()
    """What starts it, if it doesn't start by itself."""

    @property
    def command(self) -> list[str]:
        return [*self.runner, str(ROOT / self.built)]

    def why_missing(self) -> str | None:
        """Why there is nothing to test here; None if there is."""
        missing = [tool for tool in self.tools if shutil.which(tool) is None]
        if missing:
            return f"the {self.name} client needs {' and '.join(missing)}, which this machine doesn't have"
        if not (ROOT / self.built).exists():
            return f"the {self.name} client isn't built: {self.built} is missing; try: make examples"
        return None

    def bring_up_to_date(self) -> None:
        """Build what has changed since, so that no old build is tested."""
        build = subprocess.run(
            ["make", "--silent", f"example-{self.name}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert build.returncode == 0, build.stdout

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Start it and wait for its end."""
        return subprocess.run(
            [*self.command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )


LANGUAGES = {
    language.name: language
    for language in (
        Language("node", "examples/node/dist/main.js", ("node", "npm"), ("node",)),
        Language("go", "examples/go/build/fedmtl-go", ("go",)),
        Language("cpp", "examples/cpp/build/fedmtl-cpp", ("g++", "cmake")),
    )
}


class ForeignClient:
    """A running example client. What it says is kept.

    Args:
        process: its process, with both of its outputs in `log`.
        log: a file.
    """

    def __init__(self, process: asyncio.subprocess.Process, log: Path):
        self._process = process
        self._log = log

    @property
    def said(self) -> str:
        return self._log.read_text()

    async def ended(self, within_s: float = 30) -> int:
        """Its exit code."""
        try:
            async with asyncio.timeout(within_s):
                return await self._process.wait()
        except TimeoutError:
            raise AssertionError(f"the client doesn't end: {self.said}") from None

    async def has_said(self, text: str) -> None:
        async with asyncio.timeout(20):
            while text not in self.said:
                assert self._process.returncode is None, self.said
                await asyncio.sleep(0.02)

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)


@asynccontextmanager
async def training(
    language: Language, log: Path, address: str, client_id: str, task: str, *options: str
) -> AsyncIterator[ForeignClient]:
    """An example client that takes part in a run."""
    who = ("--server", address, "--task", task, "--client-id", client_id)
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *language.command, "train", *who, *options, stdout=output, stderr=output, env=os.environ
        )
    try:
        yield ForeignClient(process, log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
