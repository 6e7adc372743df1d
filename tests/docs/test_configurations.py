"""Configurations that pages show whole: each loads as it is printed."""

import re

import pytest

from fedmtl_core import config
from tools.contract_page import ROOT

PAGES = ("README.md", "docs/rounds.md", "docs/sites.md")


@pytest.mark.parametrize("page", PAGES)
def test_every_configuration_of_the_page_loads(page, tmp_path):
    blocks = re.findall(r"```yaml[^\n]*\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block)
        loaded = config.load(file, [])
        assert loaded.model_fields_set


@pytest.mark.parametrize("heading", ["## Built-in rows", "## Split one data set between clients"])
def test_every_whole_configuration_of_the_data_page_loads(heading, tmp_path):
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8").partition(heading)[2]
    file = tmp_path / "shown.yaml"
    file.write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert config.load(file, []).clients
