"""What a run has freed serves the next run on another thread, or goes back to the system."""

import subprocess
import sys

CODE = """
import numpy as np
from pathlib import Path
from threading import Thread
from service.memory import bound_freed_memory, keep_blocks_of_runs

def resident_bytes():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

def run():
    blocks = [np.ones(2**13) for _ in range(800)]  # 50 MiB in blocks that are no mappings
    ends.append(np.ones(1))  # keeps the heap from shrinking

ends = []
if not bound_freed_memory():
    print("no glibc")
else:
    keep_blocks_of_runs()
    before = resident_bytes()
    for _ in range(4):
        thread = Thread(target=run)
        thread.start()
        thread.join()
        run()
    print((resident_bytes() - before) // 2**20)
"""


def test_threads_take_turns_at_the_same_memory() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    if done.stdout.strip() != "no glibc":
        assert int(done.stdout) <= 10


FREED = """
import numpy as np
from pathlib import Path
from service.memory import bound_freed_memory, keep_blocks_of_runs, return_freed_memory

def resident_bytes():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

if not bound_freed_memory():
    print("no glibc")
else:
    keep_blocks_of_runs()
    blocks = []
    for _ in range(800):  # 50 MiB, and something between any two that stays
        blocks += [np.ones(2**13), np.ones(2**9)]
    del blocks[::2]
    before = resident_bytes()
    return_freed_memory()
    print((before - resident_bytes()) // 2**20)
"""


def test_what_is_freed_between_other_things_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    if done.stdout.strip() != "no glibc":
        assert int(done.stdout) >= 40


CHURN = """
import numpy as np
from pathlib import Path
from service.memory import LARGEST_KEPT_BLOCK, bound_freed_memory, keep_blocks_of_runs

def resident_bytes():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

if not bound_freed_memory():
    print("no glibc")
else:
    keep_blocks_of_runs()
    kept, before = [], resident_bytes()
    for size in (1.1, 4, 2, 9, 3, 1.5) * 20:
        large = [np.ones(int(size * LARGEST_KEPT_BLOCK / 8)) for _ in range(3)]
        kept.append(np.ones(2**10))  # 8 KiB that outlive what lies before them
        del large
    print((resident_bytes() - before) // 2**20)
"""


def test_large_blocks_leave_no_holes_that_nothing_fits() -> None:
    done = subprocess.run([sys.executable, "-c", CHURN], capture_output=True, text=True, check=True)
    if done.stdout.strip() != "no glibc":
        assert int(done.stdout) <= 4


FAULTS = """
import resource
import sys
import numpy as np
from service.memory import bound_freed_memory, keep_blocks_of_runs

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if not bound_freed_memory():
    print("no glibc")
else:
    if sys.argv[1] == "serving":
        keep_blocks_of_runs()
    for _ in range(3):
        np.ones(2**17)  # 1 MiB
    before = faults()
    for _ in range(20):
        np.ones(2**17)
    print(faults() - before)
"""


def test_blocks_of_runs_are_kept_once_the_models_are_loaded() -> None:
    found = {}
    for phase in ("loading", "serving"):
        command = [sys.executable, "-c", FAULTS, phase]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[phase] = done.stdout.strip()
    if found["loading"] != "no glibc":
        assert int(found["serving"]) < 100 < 20 * 256 <= int(found["loading"])
