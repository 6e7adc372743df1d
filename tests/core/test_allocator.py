"""The allocator's settings."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from fedmtl_core.allocator import keep_freed_blocks
if sys.argv[1] == "kept":
    assert keep_freed_blocks()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    bytes(bytearray(2**21))  # a message comes, is looked at, and goes
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc's allocator takes these settings")
def test_messages_that_come_and_go_cost_no_new_pages():
    """With the allocator's own settings each of them is given back to the kernel, and cleared when it is taken anew."""

    def page_faults(how):
        command = [sys.executable, "-c", SCRIPT, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert page_faults("kept") < page_faults("as it is") / 10
