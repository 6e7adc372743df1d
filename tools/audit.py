"""`python -m tools.audit`: ask whether the pinned dependencies have known vulnerabilities; say so if nobody answers.

pip-audit passes over what its service doesn't know and calls the rest fine; with a registry that is a mirror without
vulnerabilities, or with none at all, that would be a green light for nothing.
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
    """One that is known."""

    id: str


class Dependency(TypedDict, total=False):
    """What pip-audit says of one."""

    name: str
    version: str
    vulns: list[Vulnerability]
    skip_reason: str
    """Why it wasn't looked at."""


class Report(TypedDict, total=False):
    """pip-audit's JSON, as far as it is read."""

    dependencies: list[Dependency]


def verdict(report: Report | None, said: str, *, required: bool) -> tuple[int, str]:
    """An exit code and a line, of what pip-audit found.

    Args:
        report: its JSON; None if it wrote none.
        said: what it wrote to standard error.
        required: whether it is an error that dependencies weren't looked at.
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
        return code, f"audit: {len(skipped)} of {len(dependencies)} not looked at: {', '.join(skipped)}; rest fine"
    reason = said.strip().splitlines()[-1:] or ["the service knows none of the dependencies"]
    return code, f"audit: skipped: no network, or no vulnerability service there: {reason[0]}"


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
