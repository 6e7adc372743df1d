"""What a process is: it says so on standard error, and then ends with exit code 3, or waits for a signal."""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import torch

print("not for anybody")
facts = {
    "arguments": sys.argv[1:],
    "variable": os.environ.get("TOLD"),
    "threads": torch.get_num_threads(),
    "leads_its_session": os.getsid(0) == os.getpid(),
    "process": multiprocessing.current_process().name,
    "is_main": __name__ == "__main__",
    "command": Path("/proc/self/cmdline").read_text().rstrip("\0 "),
}
print(json.dumps(facts), file=sys.stderr)
if "--wait" in sys.argv:
    signal.pause()
sys.exit(3)
