"""The check of the prose: it reads what people read, names the place, and counts as a reader would."""

import subprocess

import pytest

from tools.contract_page import ROOT
from tools.prose import Passage, find_phrases, main, read_passages, sentence_lengths

PAGE = """\
# Title

A paragraph of two
lines, likewise.

- an item
- another item
  over two lines

| a head | another |
| --- | ---: |
| a cell | taken up |

```console
$ fedmtl goes on
```

[a link](goes-on.md) ends it.
"""

MODULE = '''\
"""Take the
run up."""

from pydantic import Field

# A comment of
# two lines.
NAME = "goes on"
MESSAGE = "a run that goes on"
KEY = Field(1, description="A description that stands alone.")
'''

PROTO = """\
syntax = "proto3";
// A message.
// It goes on.
message Empty {}  // what follows code isn't read
"""


@pytest.fixture
def repository(tmp_path):
    files = {"README.md": PAGE, "package/module.py": MODULE, "protos/a.proto": PROTO, "tests/test_a.py": MODULE}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    (tmp_path / "untracked.md").write_text("This goes on.")
    return tmp_path


def test_pages_comments_docstrings_descriptions_and_messages_are_read(repository):
    read = [(passage.kind, passage.line, passage.text) for passage in read_passages(repository)]
    assert read == [
        ("README.md", 1, "Title"),
        ("README.md", 3, "A paragraph of two\nlines, likewise."),
        ("README.md", 6, "- an item"),
        ("README.md", 7, "- another item\nover two lines"),
        ("README.md", 10, "a head"),
        ("README.md", 10, "another"),
        ("README.md", 12, "a cell"),
        ("README.md", 12, "taken up"),
        ("README.md", 18, "[a link] ends it."),
        ("docstrings", 1, "Take the\nrun up."),
        ("messages", 9, "a run that goes on"),
        ("descriptions", 10, "A description that stands alone."),
        ("comments", 6, "A comment of\ntwo lines."),
        ("proto", 2, "A message.\nIt goes on."),
    ]


def test_each_phrase_is_reported_with_its_file_line_and_replacement(repository, capsys):
    assert main([str(repository)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        f"{repository}/README.md:4: 'likewise': write the noun or the fact itself",
        f"{repository}/README.md:12: 'taken up': write resume",
        f"{repository}/package/module.py:1: 'Take the run up': write resume",
        f"{repository}/package/module.py:9: 'goes on': write continue",
        f"{repository}/protos/a.proto:3: 'goes on': write continue",
        "prose: 5 passage(s) to rewrite",
    ]


@pytest.mark.parametrize("text", ["We recommend amending it.", "It ongoes.", "Take 1 MB. Then give up.", "akinesia"])
def test_a_phrase_is_whole_words_within_one_sentence(text):
    assert list(find_phrases(Passage("docs", None, 1, text))) == []


def test_sentences_end_at_stops_and_paragraphs_and_words_have_letters_or_digits():
    assert sentence_lengths("One two (three). Four — five!\n\nSix 7 eight") == [3, 2, 3]
    assert sentence_lengths("A file a.yaml, version 0.1, is one sentence.") == [8]


def test_figures_count_long_sentences(repository, capsys):
    (repository / "README.md").write_text(f"{'word ' * 31}. {'word ' * 30}.")
    assert main(["--figures", str(repository)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["README.md", "61", "2", "1", "50.0%", "0"]


def test_the_readme_is_read_in_one_sitting():
    """At most 1,300 words, tables and commands included."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1300


def test_a_subject_of_a_commit_has_at_most_72_characters(repository, capsys):
    (repository / "README.md").write_text("Good prose.")
    for name in ("package/module.py", "protos/a.proto"):
        (repository / name).unlink()
    for length in (72, 73):
        author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        commit = ["git", *author, "commit", "-q", "--allow-empty", "-m", "s" * length]
        subprocess.run(commit, cwd=repository, check=True)
    assert main([str(repository)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"73 characters, more than 72, in the subject of a commit: {'s' * 73}",
        "prose: 1 passage(s) to rewrite",
    ]
