"""Settings of the server, from environment variables `PTHETA_*`."""

import math
import os
import sys
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.device import DeviceName, may_use_gpu
from service.keys import read_keys
from service.noise import MAX_SAMPLES

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(str.lower)
]

_QUEUE_ROWS = 4096


def _readable_keys(path: Path) -> Path:
    read_keys(path)
    return path


KeysPath = Annotated[Path, AfterValidator(_readable_keys)]


class Settings(BaseSettings):
    """What an operator can choose; `Settings()` reads the environment."""

    model_config = SettingsConfigDict(env_prefix="PTHETA_", frozen=True)

    model_store: Path = Field(default=Path("model_store"), description="Folder of the bundles.")
    default_model: str | None = Field(
        default=None,
        description="Model of requests that name none; by default the first latent one, else the "
        "first in the store.",
    )
    require_all_models: bool = Field(
        default=True,
        description="Whether a broken bundle keeps the server from being ready. The sound ones "
        "are served in any case.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 for any.")
    api_keys_file: KeysPath | None = Field(
        default=None,
        description="File of API keys, see docs/keys.md; without it, everything is open to whoever "
        "reaches the port.",
    )
    device: DeviceName = Field(
        default="auto", description="Where graphs run: auto, cpu, cuda or tensorrt."
    )
    gpu_memory_bytes: PositiveInt = Field(
        default=2 * 2**30, description="Most GPU memory that one graph may take, in bytes."
    )
    processes: PositiveInt | None = Field(
        default=None,
        description="Processes that share the port; by default one per CPU that the server may "
        "use, on a GPU one.",
    )
    num_threads: PositiveInt | None = Field(
        default=None,
        description="Long runs at once in each process, one thread each; by default so many that "
        "all processes together have one per CPU.",
    )
    quick_s: float = Field(
        default=0.035,
        ge=0,
        description="Runs that take less, in seconds, do without a thread of their own.",
    )
    max_rows: PositiveInt = Field(default=1024, description="Most images per request.")
    max_queue_rows: PositiveInt | None = Field(
        default=None,
        description="Most images that wait per graph, shared evenly by the processes; beyond, "
        "requests are refused. By default 4096 for each process, or PTHETA_MAX_ROWS if that is "
        "more.",
    )
    max_importance_samples: int = Field(
        default=5000,
        ge=1,
        le=MAX_SAMPLES,
        description="Most importance samples per image, where a likelihood is a bound.",
    )
    max_wait_s: float = Field(
        default=0.0, ge=0, description="Seconds to gather a batch; 0 never waits for company."
    )
    max_body_bytes: PositiveInt = Field(
        default=16 * 2**20, description="Largest request body, in bytes."
    )
    default_timeout_s: PositiveFloat = Field(
        default=30.0, description="Deadline of a request without timeout_ms, in seconds."
    )
    max_timeout_s: PositiveFloat = Field(
        default=300.0, description="Longest deadline that a request may ask for, in seconds."
    )
    body_timeout_s: PositiveFloat = Field(
        default=20.0, description="Seconds within which a body must have arrived."
    )
    drain_window_s: float = Field(
        default=1.0,
        ge=0,
        description="Seconds after SIGTERM in which requests are still taken, while /readyz "
        "tells load balancers to go elsewhere.",
    )
    drain_timeout_s: PositiveFloat = Field(
        default=20.0, description="Seconds that requests in flight get at shutdown."
    )
    log_level: LogLevel = Field(default="info", description="Level of the log on stderr.")

    @model_validator(mode="after")
    def _largest_request_fits(self) -> Self:
        if self.queue_rows(self.num_processes) < self.max_rows:
            raise ValueError(
                "PTHETA_MAX_QUEUE_ROWS must be at least PTHETA_MAX_ROWS for each of "
                f"{self.num_processes} processes, or a large request never fits"
            )
        return self

    @model_validator(mode="after")
    def _processes_are_possible(self) -> Self:
        if self.num_processes > 1 and not hasattr(os, "fork"):
            raise ValueError("PTHETA_PROCESSES must be 1: this system cannot fork")
        if self.num_processes > 1 and may_use_gpu(self.device):
            raise ValueError(
                "PTHETA_PROCESSES must be 1 where a GPU is used, which one process owns; or set "
                "PTHETA_DEVICE to cpu"
            )
        return self

    def threads(self, num_processes: int) -> int:
        """Return how many long runs may take place at once in each of some processes."""
        return self.num_threads or math.ceil(available_cpus() / num_processes)

    @property
    def num_processes(self) -> int:
        """Return how many processes share the port."""
        if self.processes is not None:
            return self.processes
        # Elsewhere the kernel does not spread connections over the sockets of one port.
        spreads = sys.platform == "linux"
        return available_cpus() if spreads and not may_use_gpu(self.device) else 1

    def queue_rows(self, num_processes: int) -> int:
        """Return how many images may wait per graph in each of some processes."""
        if self.max_queue_rows is not None:
            return self.max_queue_rows // num_processes
        return max(_QUEUE_ROWS, self.max_rows)


def available_cpus() -> int:
    """Count the CPUs that this process may use: its affinity, bounded by the cgroup's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    quota = _cgroup_quota()
    return max(1, min(count, round(quota))) if quota else count


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    try:
        unified = root / "cpu.max"
        if unified.is_file():
            quota, period = unified.read_text().split()
        else:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text()
            period = (root / "cpu/cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # no cgroup, or "max": no quota
        return None
