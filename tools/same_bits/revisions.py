"""Revisions as folders: git worktrees that are there for a while."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = "."
"""Names the working tree as it is, in place of a revision."""


class UnknownRevisionError(Exception):
    """Git knows no such commit."""


def commit_of(revision: str) -> str:
    """The commit that a revision is by now; `HERE` is itself.

    Raises:
        UnknownRevisionError: git knows no such commit.
    """
    if revision == HERE:
        return HERE
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}").strip()
    if not commit:
        raise UnknownRevisionError(f"git knows no commit {revision!r}")
    return commit


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """A commit's files.

    Args:
        commit: as `commit_of` gives it.
        folder: where they are put; it is gone afterwards.
    """
    if commit == HERE:
        yield ROOT
        return
    try:
        _git("worktree", "add", "--quiet", "--detach", str(folder), commit, check=True)
        yield folder
    finally:
        _git("worktree", "remove", "--force", str(folder))
        _git("worktree", "prune")


def is_between(change: str, a: str, b: str) -> bool:
    """Whether a commit is in one revision and not in another.

    Args:
        change: the commit.
        a: the revision that it isn't in, as `commit_of` gives it.
        b: the one that it is in.
    """
    return _has(b, change) and not _has(a, change)


def _has(commit: str, change: str) -> bool:
    head = "HEAD" if commit == HERE else commit
    command = ["git", "-C", str(ROOT), "merge-base", "--is-ancestor", change, head]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


def lacking(files: Path, keys: Iterable[str]) -> list[str]:
    """The keys of the configuration that a revision doesn't have yet.

    Args:
        files: the revision's.
        keys: as the page writes them.
    """
    page = (files / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    return [key for key in keys if f"| `{key}` |" not in page]


def _git(*arguments: str, check: bool = False) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=None if check else subprocess.DEVNULL,
        text=True,
        check=check,
        start_new_session=True,
    )
    return done.stdout
