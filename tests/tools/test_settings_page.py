"""The configuration page shows every key of the configuration, and its questions name keys and pages that exist."""

import pytest

from fedmtl_core.config import reference
from tools.settings_page import PAGE, QUESTIONS, linked, main, render


def test_the_page_is_what_the_configuration_gives():
    assert main(["--check"]) == 0, "run `make settings`"


def test_every_key_has_a_row_with_its_default_and_readers_and_a_page_without_one_is_stale(tmp_path, capsys):
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert reference()
    for setting in reference():
        (row,) = [line for line in lines if line.startswith(f"| `{setting.key}` |")]
        assert setting.default in row
        assert f"| {', '.join(setting.read_by)} |" in row
        assert linked(setting.description) in row
    page = tmp_path / "page.md"
    page.write_text(render(reference()[1:]))
    assert main(["--check", "--page", str(page)]) == 1
    assert "make settings" in capsys.readouterr().err
    assert main(["--page", str(page)]) == 0
    assert main(["--check", "--page", str(page)]) == 0


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.question)
def test_a_question_names_keys_and_pages_that_exist(question):
    assert question.keys
    assert set(question.keys) <= {setting.key for setting in reference()}
    assert question.pages
    for page in question.pages:
        assert (PAGE.parents[1] / f"{page}.md").is_file()


def test_a_page_named_in_a_description_is_a_link():
    assert linked("See docs/task-selection.md.") == "See [task-selection](../task-selection.md)."
    assert "docs/" not in render(reference()).split("## model", 1)[1]
