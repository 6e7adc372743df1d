"""The reference of the configuration's keys: descriptions that stand alone, and the programs that read each key."""

import ast
import functools
import re
from pathlib import Path

import pytest

import fedmtl_client
import fedmtl_core
import fedmtl_local
import fedmtl_server
from fedmtl_core import config
from fedmtl_core.config import READERS

SETTINGS = {setting.key: setting for setting in config.reference()}

MIN_WORDS = 6
BACK_REFERENCES = re.compile(
    r"\blikewise\b|\bditto\b|\bone that\b|\bsuch a\b|\bof these\b|\bof both\b|\bof those\b|\bas above\b|\bsee above\b"
    r"|^(?:It|Its|They|Their|This|That|These|Those|Such|The same|Instead|For|Of|To|By|What|Who|Whom|How|Which)\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_a_description_is_a_sentence_that_stands_alone(setting):
    text = setting.description
    assert text[0].isupper()
    assert text.endswith(".")
    assert len(text.split()) >= MIN_WORDS
    assert not BACK_REFERENCES.search(text)
    assert setting.default or "not given" in text or "equired" in text, "say what holds without a value"


@pytest.mark.parametrize(
    "text", ["By how much it has to.", "Its seed.", "Encoding of slices, likewise.", "For this: a."]
)
def test_a_back_reference_is_found(text):
    assert BACK_REFERENCES.search(text)


def test_every_key_names_the_programs_that_read_it_in_one_order():
    for setting in SETTINGS.values():
        assert setting.read_by, setting.key
        assert list(setting.read_by) == [one for one in READERS if one in setting.read_by], setting.key


def test_every_section_with_keys_has_a_purpose():
    purposes = config.section_purposes()
    for key in SETTINGS:
        assert purposes[key.rpartition(".")[0]].endswith(".")


SERVER, CLIENT, LAUNCHER, CORE = (
    Path(package.__file__).parent for package in (fedmtl_server, fedmtl_client, fedmtl_local, fedmtl_core)
)
PACKAGES = {"server": SERVER, "client": CLIENT, "launcher": LAUNCHER}
SHARED = {
    "server": [CORE / "runtime" / "tracing_setup.py"],
    "client": [CORE / "runtime" / "tracing_setup.py"],
    "launcher": [CLIENT / "credentials.py", SERVER / "storage" / "folders.py"],
}
"""Modules of other packages to which a program hands its configuration."""
NOT_READERS = {"doctor.py", "doctor_cli.py"}
"""A doctor reads keys of other programs, too."""

BY_THE_LAUNCHER_FOR_ITS_PROCESSES = {
    "clients[].client_id",
    "clients[].task",
    "clients[].tasks",
    "clients[].shard",
    "clients[].token_file",
    "clients[].tls_certificate",
    "clients[].tls_key",
}
"""Keys that the launcher turns into options of the processes that it starts."""


def sources(reader):
    own = [path for path in sorted(PACKAGES[reader].rglob("*.py")) if path.name not in NOT_READERS]
    return [*own, *SHARED[reader]]


@functools.cache
def attributes(reader):
    """Every attribute chain that a package's modules read, as text."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sources(reader)]
    return {ast.unparse(node) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def chain(node, aliases):
    """A node as text from `config` on, with local names for sections resolved; empty for other nodes."""
    if isinstance(node, ast.Name):
        return "config" if node.id in ("config", "settled") else aliases.get(node.id, "")
    if isinstance(node, ast.Attribute):
        if node.attr == "_config":
            return "config"
        outer = chain(node.value, aliases)
        return f"{outer}.{node.attr}" if outer else ""
    return ""


def aliases_in(function):
    """Local names of sections in a function, such as `security` after `security = config.security`."""
    aliases = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            names, values = [getattr(one, "elts", [one]) for one in (node.targets[0], node.value)]
            pairs = zip(names, values, strict=False)
            aliases |= {name.id: chain(value, {}) for name, value in pairs if isinstance(name, ast.Name)}
    return aliases


@functools.cache
def keys_read(reader):
    """The keys that a program reads, such as `config.training.seed`, directly or through a local name."""
    found = set()
    for path in sources(reader):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                aliases = aliases_in(function)
                found |= {chain(node, aliases).removeprefix("config.") for node in ast.walk(function)}
    return found & SETTINGS.keys()


@pytest.mark.parametrize("reader", READERS)
def test_a_program_that_reads_a_key_is_among_its_readers(reader):
    found = keys_read(reader)
    assert len(found) >= 10
    assert [key for key in sorted(found) if reader not in SETTINGS[key].read_by] == []


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_of_a_key_has_code_that_reads_an_attribute_of_this_name(reader):
    """Directly, or through a method of the configuration that combines keys, such as `Config.plan`."""
    own = {text.rpartition(".")[2] for text in attributes(reader)}
    for path in (
        CORE / "config" / name
        for name in ("root.py", "adapters.py", "tasks.py", "sharing.py", "aggregation.py", "clients.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name in own:
                own |= {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
    named = {key.rpartition(".")[2] for key, setting in SETTINGS.items() if reader in setting.read_by}
    strings = "\n".join(path.read_text(encoding="utf-8") for path in sources(reader))
    assert {name for name in named - own if f'"{name}"' not in strings} == set()


def test_clients_read_their_own_keys_and_the_server_the_training_that_it_plans():
    """Training settings reach clients in the slice's header, so that the server reads them."""
    readers = {key: setting.read_by for key, setting in SETTINGS.items()}
    assert readers["training.learning_rate"] == ("server",)
    assert readers["training.device"] == ("client",)
    assert readers["client.reconnect_s"] == ("client",)
    assert readers["limits.uploads"] == ("server",)
    assert {readers[key] for key in readers if key.startswith("tasks.NAME.data.")} == {("client",)}
    for key in BY_THE_LAUNCHER_FOR_ITS_PROCESSES:
        assert {"client", "launcher"} <= set(readers[key])
