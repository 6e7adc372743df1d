"""What an audit comes to, also when nobody answered it."""

import pytest

from tools.audit import verdict

FINE = {"name": "numpy", "version": "2.4.6", "vulns": []}
BAD = {"name": "pillow", "version": "1.0", "vulns": [{"id": "PYSEC-1"}, {"id": "PYSEC-2"}]}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited"}


@pytest.mark.parametrize("required", [False, True])
def test_known_vulnerabilities_are_an_error_that_names_them(required):
    code, text = verdict({"dependencies": [FINE, BAD, UNKNOWN]}, "", required=required)
    assert code == 1
    assert "pillow 1.0: PYSEC-1, PYSEC-2" in text


def test_nothing_found_in_all_of_them_is_fine():
    code, text = verdict({"dependencies": [FINE]}, "", required=True)
    assert (code, text) == (0, "audit: no known vulnerabilities in 1 dependencies")


@pytest.mark.parametrize(
    ("report", "said"),
    [(None, "ConnectionError: Name or service not known"), ({"dependencies": [UNKNOWN]}, ""), ({}, "")],
)
def test_that_nobody_answered_is_said_and_is_an_error_where_an_answer_is_required(report, said):
    code, text = verdict(report, said, required=False)
    assert code == 0
    assert text.startswith("audit: skipped: no network or no vulnerability service")
    assert said in text
    assert verdict(report, said, required=True) == (1, text)


def test_those_that_were_not_looked_at_are_named():
    code, text = verdict({"dependencies": [FINE, UNKNOWN]}, "", required=False)
    assert (code, text) == (0, "audit: 1 of 2 dependencies not checked: torch; no known vulnerabilities in the others")
    assert verdict({"dependencies": [FINE, UNKNOWN]}, "", required=True)[0] == 1
