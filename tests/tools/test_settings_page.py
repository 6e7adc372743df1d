"""The page of configuration keys is what the configuration is."""

from fedmtl_core.config import reference
from tools.settings_page import PAGE, main, render


def test_the_page_is_what_the_configuration_gives():
    assert main(["--check"]) == 0, "run `make settings`"


def test_every_key_has_a_row_with_its_default_and_a_page_without_one_is_stale(tmp_path, capsys):
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert reference()
    for setting in reference():
        (row,) = [line for line in lines if line.startswith(f"| `{setting.key}` |")]
        assert setting.default in row
        assert setting.description in row
    page = tmp_path / "page.md"
    page.write_text(render(reference()[1:]))
    assert main(["--check", "--page", str(page)]) == 1
    assert "make settings" in capsys.readouterr().err
    assert main(["--page", str(page)]) == 0
    assert main(["--check", "--page", str(page)]) == 0
