"""The allocator's settings."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from fedmtl_core.runtime.allocator import keep_freed_blocks
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


GIVEN_BACK = """
from pathlib import Path
from fedmtl_core.runtime.allocator import give_back_freed_blocks, keep_freed_blocks
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
keep_freed_blocks()
blocks = [bytearray(2**20) for _ in range(300)]
last = bytearray(2**20)  # above them in the heap
del blocks
before = resident()
give_back_freed_blocks()
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc's allocator takes these settings")
def test_what_was_freed_below_something_that_stays_is_given_back():
    freed = int(subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True).stdout)
    assert freed > 250 * 2**20


def test_what_is_there_is_not_looked_at_again():
    script = (
        "import gc; from fedmtl_core.runtime.allocator import keep_what_is_there as keep; "
        "keep(); print(gc.get_freeze_count())"
    )
    command = [sys.executable, "-c", script]
    assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) > 1000
