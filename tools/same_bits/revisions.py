"""Checks out revisions into folders, as temporary git worktrees."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = "."
"""The name of the current working tree, used in place of a revision."""


class UnknownRevisionError(Exception):
    """Git does not know the commit."""


def commit_of(revision: str) -> str:
    """Return the commit that a revision names now; `HERE` stays `HERE`.

    Raises:
        UnknownRevisionError: git does not know the revision.
    """
    if revision == HERE:
        return HERE
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}").strip()
    if not commit:
        raise UnknownRevisionError(f"expected a commit that git knows, got {revision!r}")
    return commit


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """Check out a commit's files.

    Args:
        commit: a commit from `commit_of`.
        folder: the folder for the files, which is removed afterwards.
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
    """Return whether revision `b` contains a commit that revision `a` does not contain.

    Args:
        change: the commit.
        a: the earlier revision, from `commit_of`.
        b: the later revision, from `commit_of`.
    """
    return _has(b, change) and not _has(a, change)


def _has(commit: str, change: str) -> bool:
    head = "HEAD" if commit == HERE else commit
    command = ["git", "-C", str(ROOT), "merge-base", "--is-ancestor", change, head]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


def lacking(files: Path, keys: Iterable[str]) -> list[str]:
    """Return the configuration keys that a revision does not have yet.

    Args:
        files: the folder with the revision's files.
        keys: the keys, as docs/reference/configuration.md writes them.
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
