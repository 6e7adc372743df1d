"""The reference page: it has every comment of the proto, and all its links have targets."""

import re

import pytest
from fedmtl.v1 import federation_pb2 as pb

from tools import contract_page
from tools.contract_page import PAGE, ROOT, describe, main, render

SMALL = """\
// What it is for.
//
// # A chapter
//
// 1. First `Ask`.

syntax = "proto3";

package small.v1;

// A service.
service Answering {
  // Answers a `Question`.
  // Errors:
  // * `NOT_FOUND`: no answer,
  //   ever.
  //   * Nobody knows it,
  //     or tells it.
  rpc Ask(Question) returns (stream Question);
}

// The next available field number is 9.
message Question {
  // Words | phrases,
  // at most `MOOD_GOOD`.
  //
  // Not:
  //
  // * names,
  // * numbers,
  //   in digits.
  repeated string words = 1;
  map<string, Mood> moods = 2;
  optional Mood mood = 3;
  oneof rest {
    // One.
    bool yes = 4;
  }
}

// How it feels.
enum Mood {
  MOOD_UNSPECIFIED = 0;
  // Well.
  MOOD_GOOD = 1;
}
"""


@pytest.fixture
def small(tmp_path):
    (tmp_path / "small.proto").write_text(SMALL)
    return render(describe(tmp_path, contract_page.Path("small.proto")))


def test_comments_become_prose_with_headings_lists_and_links(small):
    assert "What it is for.\n\n## A chapter\n\n1. First [`Ask`](#ask)." in small
    assert "### Ask\n\n[`Question`](#question) → a stream of [`Question`](#question)\n\n" in small
    assert "Answers a [`Question`](#question).\nErrors:\n\n* `NOT_FOUND`: no answer,\n    ever.\n" in small
    assert "\n    * Nobody knows it,\n        or tells it.\n" in small
    assert "next available" not in small


def test_fields_become_tables_with_their_types(small):
    assert (
        "| 1 | `words` | repeated `string` | Words \\| phrases, at most [`MOOD_GOOD`](#mood)."
        "<br><br>Not:<br>• names,<br>• numbers, in digits. |"
    ) in small
    assert "| 2 | `moods` | map of `string` to [`Mood`](#mood) |  |" in small
    assert "| 3 | `mood` | optional [`Mood`](#mood) |  |" in small
    assert "| 4 | `yes` | `bool` | One of `rest`. One. |" in small
    assert "| 1 | `MOOD_GOOD` | Well. |" in small


def test_the_contracts_page_is_up_to_date():
    assert PAGE.read_text() == render(describe(ROOT / "protos"))


def test_the_contracts_page_has_everything_and_no_link_goes_nowhere():
    page = PAGE.read_text()
    for message in pb.DESCRIPTOR.message_types_by_name.values():
        section = page.partition(f"\n### {message.name}\n")[2].partition("\n### ")[0]
        for field in message.fields:
            assert f"| {field.number} | `{field.name}` | " in section, field.full_name
    for enum in pb.DESCRIPTOR.enum_types_by_name.values():
        for value in enum.values:
            assert f"| {value.number} | `{value.name}` | " in page
    headings = {heading.lower() for heading in re.findall(r"^#+ (\w+)$", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]*)\)", page)) <= headings
    for path in re.findall(r"\]\((\.\./[^)]*)\)", page):
        assert (PAGE.parent / path).is_file(), path


def test_a_stale_page_is_told(tmp_path, capsys):
    page = tmp_path / "contract.md"
    assert main(["--check", "--page", str(page)]) == 1
    assert main(["--page", str(page)]) == 0
    assert main(["--check", "--page", str(page)]) == 0
    page.write_text(page.read_text().replace("MUST", "may"))
    assert main(["--check", "--page", str(page)]) == 1
    assert "is stale: run 'make proto'" in capsys.readouterr().err


def test_a_file_that_is_no_proto_is_an_error(tmp_path, capfd):
    (tmp_path / "bad.proto").write_text("message {")
    with pytest.raises(ValueError, match=r"bad\.proto is no valid proto file"):
        describe(tmp_path, contract_page.Path("bad.proto"))
    assert "bad.proto" in capfd.readouterr().err
