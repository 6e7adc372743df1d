"""Check the prose of the repository for phrases that slow its readers down: `make prose`.

`python -m tools.prose --figures [ROOT]` counts words, sentences, long sentences and such phrases instead.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

REPLACEMENTS = {
    r"likewise": "the noun or the fact itself",
    r"(?:take|takes|taken|took|taking) (?:\w+ ){0,3}up": "resume",
    r"(?:go|goes|went|gone|going) on": "continue",
    r"(?:hand|hands|handed|handing) out": "serve, send",
    r"(?:let|lets|letting) go": "release",
    r"spoil\w*|spoilt": "invalidate, corrupt",
    r"(?:mend|mends|mended|mending)": "fix, correct",
    r"blam(?:e|es|ed|ing)": "attribute",
    r"akin": "related",
    r"anew": "again, from the start",
    r"(?:what|who) is there": "the noun: `connected clients`, `the updates received`",
    r"as long as it is": "while",
    r"(?:is|are) so to": "relative to",
    r"one's own": "your own, custom",
    r"in earnest": "in production",
    r"(?:is|are) told of": "is notified of, observes",
    r"otherwise than": "differently from",
    r"by how much": "the noun: `the difference`",
    r"(?:held|hold|holds) against": "compared with",
    r"of like": "of similar",
    r"without reading": "trivial baseline",
    r"what it waits for|what a round waits for": "wait condition, missing clients",
    r"where (?:a|the) run stands": "the run's status",
    r"who takes part|who may take part": "participants, client selection",
    r"lies? there|stands? there": "the noun: `the value`, `the file`",
    r"no (?:\w+ ){1,2}any ?more": "no longer",
}
"""Replacement by phrase; a phrase is a regular expression of whole words, in any case, across line breaks."""

LONG_SENTENCE = 30
"""A sentence of more words than this counts as long."""

LONGEST_SUBJECT = 72
"""Characters that a commit's subject may have."""

COMMITS_CHECKED = 100
"""The newest commits whose subjects are checked."""

_PHRASES = {
    re.compile(rf"\b(?:{pattern})\b".replace(" ", r"\s+"), re.IGNORECASE): better
    for pattern, better in REPLACEMENTS.items()
}


@dataclass(frozen=True)
class Passage:
    """A piece of prose with its source: a paragraph, a table cell, a comment, a docstring or a message."""

    kind: str
    path: Path
    line: int
    text: str


def main(arguments: list[str]) -> int:
    """Print each phrase of `REPLACEMENTS` with its file and line, and each long subject; return 1 if there are any."""
    figures = arguments[:1] == ["--figures"]
    root = Path(*arguments[1:2]) if figures else Path(*arguments[:1])
    passages = list(read_passages(root))
    if figures:
        print_figures(passages)
        return 0
    found = 0
    for passage in passages:
        for line, phrase, better in find_phrases(passage):
            print(f"{passage.path}:{line}: {phrase!r}: write {better}")
            found += 1
    for subject in long_subjects(root):
        print(f"{len(subject)} characters, more than {LONGEST_SUBJECT}, in the subject of a commit: {subject}")
        found += 1
    print(f"prose: {found} passage(s) to rewrite" if found else f"prose: {len(passages)} passages, nothing to rewrite")
    return 1 if found else 0


def find_phrases(passage: Passage) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the phrase and its replacement for each phrase of `REPLACEMENTS` in a passage."""
    for pattern, better in _PHRASES.items():
        for match in pattern.finditer(passage.text):
            line = passage.line + passage.text.count("\n", 0, match.start())
            yield line, " ".join(match[0].split()), better


def long_subjects(root: Path) -> list[str]:
    """Return the subjects of the newest commits that are longer than `LONGEST_SUBJECT`."""
    command = ["git", "log", f"-{COMMITS_CHECKED}", "--no-merges", "--format=%s"]
    log = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    return [subject for subject in log.stdout.splitlines() if len(subject) > LONGEST_SUBJECT]


def print_figures(passages: list[Passage]) -> None:
    """Print the words, sentences, long sentences and phrases of each kind of prose."""
    print(f"{'prose':<14}{'words':>8}{'sentences':>11}{'long':>6}{'share':>8}{'phrases':>9}")
    for kind in [*dict.fromkeys(passage.kind for passage in passages), "all"]:
        chosen = [passage for passage in passages if kind in (passage.kind, "all")]
        sentences = [words for passage in chosen for words in sentence_lengths(passage.text)]
        long = sum(words > LONG_SENTENCE for words in sentences)
        phrases = sum(1 for passage in chosen for _ in find_phrases(passage))
        share = long / len(sentences) if sentences else 0.0
        print(f"{kind:<14}{sum(sentences):>8}{len(sentences):>11}{long:>6}{share:>8.1%}{phrases:>9}")


def sentence_lengths(text: str) -> list[int]:
    """Return the number of words of each sentence; a word has a letter or a digit in it."""
    sentences = re.split(r"(?<=[.!?])[)\"*]*\s+|\n\s*\n", text)
    counts = [sum(any(map(str.isalnum, word)) for word in sentence.split()) for sentence in sentences]
    return [count for count in counts if count]


def read_passages(root: Path) -> Iterator[Passage]:
    """Yield the prose of the files under version control in a folder, except tests and generated files."""
    command = ["git", "ls-files", "-z"]
    listing = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    for name in sorted(filter(None, listing.stdout.split("\0"))):
        path = root / name
        read = _READERS.get(path.suffix)
        if read is None or name.startswith(_LEFT_OUT) or not path.is_file() or path.name == "prose.py":
            continue
        for passage in read(path, path.read_text(encoding="utf-8")):
            yield replace(passage, kind=name) if name in _PAGES_OF_THEIR_OWN else passage


_PAGES_OF_THEIR_OWN = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
_LEFT_OUT = ("generated/", "tests/", "docs/reference/", "docs/results/", "node_modules/")


def _read_markdown(path: Path, text: str) -> Iterator[Passage]:
    """Yield headings, paragraphs, list items and table cells, without code blocks."""
    block: list[str] = []
    start, fenced = 1, False
    for number, line in enumerate([*text.splitlines(), ""], 1):
        bare = line.strip()
        fence = bare.startswith("```")
        fenced ^= fence
        breaks = (
            fence or fenced or not bare or bare.startswith(("|", "#", "- ", "* ", "<!--")) or re.match(r"\d+\. ", bare)
        )
        if breaks and block:
            yield Passage("docs", path, start, "\n".join(block))
            block = []
        if fence or fenced or not bare:
            continue
        if bare.startswith("#"):
            yield Passage("docs", path, number, bare.strip("# "))
            continue
        if bare.startswith("|"):
            yield from (
                Passage("docs", path, number, cell.strip()) for cell in bare.strip("|").split("|") if cell.strip(" -:")
            )
            continue
        if not block:
            start = number
        block.append(re.sub(r"\]\([^)]*\)", "]", bare))


def _read_proto(path: Path, text: str) -> Iterator[Passage]:
    """Yield each run of comment lines."""
    block: list[str] = []
    for number, line in enumerate([*text.splitlines(), ""], 1):
        comment = re.match(r"\s*//(.*)", line)
        if comment and comment[1].strip():
            block.append(comment[1].strip())
        elif block:
            yield Passage("proto", path, number - len(block), "\n".join(block))
            block = []


def _read_python(path: Path, text: str) -> Iterator[Passage]:
    """Yield descriptions of settings and options, docstrings, messages of three words or more, and comments."""
    tree = ast.parse(text)
    kinds: dict[int, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("description", "help"):
            kinds.update((id(part), "descriptions") for part in ast.walk(node.value))
        elif isinstance(node, ast.Expr):
            kinds[id(node.value)] = "docstrings"
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value.split()) > 2:
            yield Passage(kinds.get(id(node), "messages"), path, node.lineno, node.value)
    block: list[str] = []
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        if block and token.start[0] != last + 1:
            yield Passage("comments", path, last + 1 - len(block), "\n".join(block))
            block = []
        last = token.start[0]
        block.append(token.string.lstrip("#").strip())
    if block:
        yield Passage("comments", path, last + 1 - len(block), "\n".join(block))


_READERS = {".md": _read_markdown, ".proto": _read_proto, ".py": _read_python}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
