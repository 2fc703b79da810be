"""Settings come from the environment, are checked, and respect the machine's limits."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from service import settings as module
from service.settings import Settings, available_cpus


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTHETA_MODEL_STORE", "/somewhere")
    monkeypatch.setenv("PTHETA_MAX_ROWS", "7")
    monkeypatch.setenv("PTHETA_REQUIRE_ALL_MODELS", "false")
    settings = Settings()
    assert settings.model_store == Path("/somewhere")
    assert settings.max_rows == 7
    assert settings.require_all_models is False


def test_an_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTHETA_PORT", "1")
    assert Settings(port=2).port == 2


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


def test_every_setting_says_what_it_is() -> None:
    undescribed = [name for name, field in Settings.model_fields.items() if not field.description]
    assert not undescribed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "-1"),
        ("PORT", "65536"),
        ("PORT", "http"),
        ("NUM_THREADS", "0"),
        ("PROCESSES", "0"),
        ("MAX_ROWS", "0"),
        ("MAX_QUEUE_ROWS", "-5"),
        ("MAX_WAIT_S", "-0.1"),
        ("MAX_BODY_BYTES", "0"),
        ("DEFAULT_TIMEOUT_S", "0"),
        ("MAX_TIMEOUT_S", "soon"),
        ("BODY_TIMEOUT_S", "0"),
        ("DRAIN_TIMEOUT_S", "0"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_value_that_cannot_work_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"PTHETA_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_a_queue_has_room_for_the_largest_request() -> None:
    with pytest.raises(ValidationError, match="MAX_QUEUE_ROWS"):
        Settings(processes=1, max_rows=100, max_queue_rows=99)
    with pytest.raises(ValidationError, match="each of 3 processes"):
        Settings(processes=3, max_rows=100, max_queue_rows=299)


@pytest.mark.parametrize("num_processes", [1, 3, 64])
def test_processes_share_the_queue(num_processes: int) -> None:
    own = Settings(processes=1, max_rows=10, max_queue_rows=6400).queue_rows(num_processes)
    assert num_processes * own <= 6400
    assert Settings(max_rows=100).queue_rows(num_processes) >= 100


def test_threads_and_processes_can_be_chosen() -> None:
    settings = Settings(num_threads=3, processes=5)
    assert (settings.threads(5), settings.num_processes) == (3, 5)


def test_a_gpu_is_owned_by_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_cpus", lambda: 8)
    monkeypatch.setattr(module, "may_use_gpu", lambda device: device != "cpu")
    assert Settings(device="cuda").num_processes == 1
    with pytest.raises(ValidationError, match="one process owns"):
        Settings(device="cuda", processes=2)
    monkeypatch.setattr(module.sys, "platform", "linux")
    assert Settings(device="cpu").num_processes == 8
    monkeypatch.setattr(module.sys, "platform", "darwin")
    assert Settings(device="cpu").num_processes == 1


def test_without_fork_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork", raising=False)
    monkeypatch.setattr(module.sys, "platform", "win32")
    assert Settings().num_processes == 1
    with pytest.raises(ValidationError, match="cannot fork"):
        Settings(processes=2)


def write_quota(root: Path, version: int, quota: str) -> Path:
    if version == 2:
        (root / "cpu.max").write_text(f"{quota} 100000\n")
    else:
        (root / "cpu").mkdir()
        (root / "cpu/cpu.cfs_quota_us").write_text(f"{quota}\n")
        (root / "cpu/cpu.cfs_period_us").write_text("100000\n")
    return root


@pytest.mark.parametrize(
    ("version", "quota", "cpus"),
    [
        (2, "150000", 1.5),
        (2, "50000", 0.5),
        (2, "max", None),
        (2, "nonsense", None),
        (1, "400000", 4.0),
        (1, "-1", None),
    ],
)
def test_the_cgroup_quota_is_read(
    tmp_path: Path, version: int, quota: str, cpus: float | None
) -> None:
    assert module._cgroup_quota(write_quota(tmp_path, version, quota)) == cpus


def test_without_a_cgroup_there_is_no_quota(tmp_path: Path) -> None:
    assert module._cgroup_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("affinity", "quota", "count"),
    [(8, None, 8), (8, 2.0, 2), (2, 8.0, 2), (8, 0.2, 1), (8, 1.6, 2), (1, None, 1)],
)
def test_threads_fit_both_affinity_and_quota(
    monkeypatch: pytest.MonkeyPatch, affinity: int, quota: float | None, count: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)), raising=False)
    monkeypatch.setattr(module, "_cgroup_quota", lambda: quota)
    assert available_cpus() == count
    assert Settings().threads(1) == count
    assert Settings().threads(count) == 1
