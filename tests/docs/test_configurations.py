"""Configurations that users get: those that pages show whole load as printed, and files choose the sharing."""

import re

import pytest

from fedmtl_core import config
from tools.contract_page import ROOT

PAGES = ("README.md", "docs/rounds.md", "docs/sites.md")
EXAMPLES = [*ROOT.glob("examples/*/config.yaml")]
HANDED_OUT = [ROOT / "configs/real.yaml", *EXAMPLES]


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


@pytest.mark.parametrize("file", HANDED_OUT, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_file_that_users_start_from_chooses_auto_in_a_word(file):
    assert re.search(r"^sharing: auto( |$)", file.read_text(encoding="utf-8"), re.MULTILINE)
    assert config.load(file).sharing.mode == "auto"


@pytest.mark.parametrize("page", ["README.md", "docs/sites.md", "docs/data.md", "docs/python.md"])
def test_every_page_with_a_whole_configuration_chooses_auto(page):
    assert re.search(
        r'^(sharing: auto|    "sharing": "auto",)$', (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE
    )


def test_the_configuration_of_the_mission_says_nothing_and_keeps_one_encoder_for_all_tasks():
    assert len(EXAMPLES) >= 4
    file = ROOT / "configs/federated_config.yaml"
    assert "sharing" not in file.read_text(encoding="utf-8")
    loaded = config.load(file).sharing
    assert (loaded.mode, loaded.adaptive.policy) == ("plain", None)
