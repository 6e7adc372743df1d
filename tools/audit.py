"""`python -m tools.audit`: check the pinned dependencies for known vulnerabilities, and report an unanswered check.

pip-audit skips packages that its service does not know, and reports no vulnerabilities for them. With a mirror that has
no vulnerability data, or without a registry, its success would mean nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TypedDict

COMMAND = ("pip-audit", "-r", "constraints.txt", "--no-deps", "--disable-pip", "--progress-spinner=off", "-f", "json")
TIMEOUT_S = 300


class Vulnerability(TypedDict):
    """A known vulnerability."""

    id: str


class Dependency(TypedDict, total=False):
    """The report of pip-audit on one dependency."""

    name: str
    version: str
    vulns: list[Vulnerability]
    skip_reason: str
    """The reason why pip-audit did not check the dependency."""


class Report(TypedDict, total=False):
    """The fields of pip-audit's JSON report that this module reads."""

    dependencies: list[Dependency]


def verdict(report: Report | None, stderr: str, *, required: bool) -> tuple[int, str]:
    """Return an exit code and a message for the result of pip-audit.

    Args:
        report: the JSON report; None if pip-audit wrote none.
        stderr: the standard error of pip-audit.
        required: whether unchecked dependencies are an error.
    """
    dependencies = report.get("dependencies", []) if report else []
    skipped = [one["name"] for one in dependencies if "skip_reason" in one]
    vulnerable = [one for one in dependencies if one.get("vulns")]
    if vulnerable:
        found = (f"  {one['name']} {one['version']}: {', '.join(v['id'] for v in one['vulns'])}" for one in vulnerable)
        return 1, "\n".join(["audit: known vulnerabilities:", *found])
    looked_at = len(dependencies) - len(skipped)
    if looked_at and not skipped:
        return 0, f"audit: no known vulnerabilities in {looked_at} dependencies"
    code = 1 if required else 0
    if looked_at:
        return code, (
            f"audit: {len(skipped)} of {len(dependencies)} dependencies not checked: {', '.join(skipped)}; no known "
            "vulnerabilities in the others"
        )
    reason = stderr.strip().splitlines()[-1:] or ["the service knows none of the dependencies"]
    return code, f"audit: skipped: no network or no vulnerability service: {reason[0]}"


def main() -> int:
    required = bool(os.environ.get("FEDMTL_AUDIT_REQUIRED"))
    command = [os.path.join(os.path.dirname(sys.executable), COMMAND[0]), *COMMAND[1:]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        code, text = verdict(_json(done.stdout), done.stderr, required=required)
    except (OSError, subprocess.TimeoutExpired) as error:
        code, text = verdict(None, str(error), required=required)
    print(text, file=sys.stderr if code else sys.stdout)
    return code


def _json(text: str) -> Report | None:
    try:
        report: Report = json.loads(text)
    except ValueError:
        return None
    return report


if __name__ == "__main__":
    sys.exit(main())
