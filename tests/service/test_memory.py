"""What a run has freed serves the next run on another thread, or goes back to the system."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="it is glibc's malloc that is told"
)

MODEL_STORE = Path(__file__).parents[2] / "model_store"

PREAMBLE = """
import resource
import numpy as np
from pathlib import Path
from threading import Thread
from service.memory import (
    LARGEST_KEPT_BLOCK,
    bound_freed_memory,
    keep_blocks_of_runs,
    return_freed_memory,
)

def resident_bytes():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

def num_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

assert bound_freed_memory()
"""


def measure(code: str) -> int:
    """Run code in a process of its own, whose malloc is told; returns the number that it prints."""
    return int(run(code))


def run(code: str) -> str:
    """Run code in a process of its own, whose malloc is told; returns what it prints."""
    command = [sys.executable, "-c", PREAMBLE + code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_threads_take_turns_at_the_same_memory() -> None:
    grown = measure("""
def run():
    # 50 MiB in blocks that are no mappings, and nothing small between them that would stay.
    blocks = [None] * 800
    for place in range(800):
        blocks[place] = bytearray(2**16)
    ends.append(np.ones(1))  # keeps the heap from shrinking

keep_blocks_of_runs()
ends, before = [], resident_bytes()
for _ in range(4):
    thread = Thread(target=run)
    thread.start()
    thread.join()
    run()
print(resident_bytes() - before)
""")
    assert grown // 2**20 <= 10


def test_what_is_freed_between_other_things_goes_back_to_the_system() -> None:
    returned = measure("""
keep_blocks_of_runs()
blocks = []
for _ in range(800):  # 50 MiB, and something between any two that stays
    blocks += [np.ones(2**13), np.ones(2**9)]
del blocks[::2]
before = resident_bytes()
return_freed_memory()
print(before - resident_bytes())
""")
    assert returned // 2**20 >= 40


def test_large_blocks_leave_no_holes_that_nothing_fits() -> None:
    grown = measure("""
keep_blocks_of_runs()
kept, before = [], resident_bytes()
for size in (1.1, 4, 2, 9, 3, 1.5) * 20:
    large = [np.ones(int(size * LARGEST_KEPT_BLOCK / 8)) for _ in range(3)]
    kept.append(np.ones(2**10))  # 8 KiB that outlive what lies before them
    del large
print(resident_bytes() - before)
""")
    assert grown // 2**20 <= 4


REPEAT = """
for _ in range(3):
    np.ones(2**17)  # 1 MiB, 256 pages
before = num_faults()
for _ in range(20):
    np.ones(2**17)
print(num_faults() - before)
"""


def test_blocks_of_runs_are_kept_once_the_models_are_loaded() -> None:
    assert measure(REPEAT) >= 20 * 256
    assert measure("keep_blocks_of_runs()" + REPEAT) < 100


FULL_BATCHES = """
from service.catalog import read_bundle
from service.manifest import GOLDEN_FILE, version_folders

runs = {}
for name, _, folder in version_folders(Path(%r)):
    bundle = read_bundle(folder)
    with np.load(folder / GOLDEN_FILE) as golden:
        for role, session in bundle.sessions.items():
            num_rows = bundle.manifest.graphs[role].max_batch_rows
            inputs = {i: golden[f"{role}.{i}"] for i in session.inputs}
            inputs = {i: np.resize(a, (num_rows, *a.shape[1:])) for i, a in inputs.items()}
            runs[name, role] = session, inputs, num_rows
keep_blocks_of_runs()
for (name, role), (session, inputs, num_rows) in runs.items():
    counts = []
    for _ in range(6):
        before = num_faults()
        session.run(inputs)
        counts.append(num_faults() - before)
    print(name, role, min(counts) / num_rows)  # some of the first make the heap larger
"""


def test_full_batches_of_shipped_models_run_in_memory_that_is_there() -> None:
    lines = [line.split() for line in run(FULL_BATCHES % str(MODEL_STORE)).splitlines()]
    assert len(lines) > 20
    # One such block that is not kept would be 20 to 70 pages a row.
    assert [line for line in lines if float(line[2]) > 8] == []
