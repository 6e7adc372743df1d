"""What the README says of the configuration is what the configuration is."""

from pathlib import Path

from fedmtl_core.tables import settings_markdown


def test_the_readme_lists_every_configuration_key_with_its_default():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert settings_markdown() in readme, "run `make settings`"
