"""What memory is left: the machine's, within what a batch system allows."""

import pytest

from vesselgan.core import memory


@pytest.mark.parametrize(
    ("group", "job", "task"),
    [("0::/job/task", "job/memory.max", "job/task/memory.max"),
     ("4:memory:/job/task", "memory/job/memory.limit_in_bytes", "memory/job/task/memory.limit_in_bytes")],
)  # fmt: skip
def test_the_smallest_limit_of_all_groups_counts(tmp_path, monkeypatch, group, job, task):
    monkeypatch.setattr(memory, "PROC", tmp_path)
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    assert memory.available_bytes() == float("inf")  # nothing is known
    for name, text in (("meminfo", "MemTotal: 9 kB\nMemAvailable: 8 kB\n"), ("self/cgroup", f"1:cpu:/\n{group}\n")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert (memory.available_bytes(), memory.total_bytes()) == (8 * 1024, 9 * 1024)
    (tmp_path / task).parent.mkdir(parents=True)
    (tmp_path / task).write_text("max\n")
    (tmp_path / job).write_text("4096\n")
    assert memory.available_bytes() == 4096
    (tmp_path / task).write_text("2048\n")
    assert memory.available_bytes() == memory.total_bytes() == 2048


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1023, "1.00 KiB"), (5 * 2**30, "5.00 GiB"), (80 * 2**20, "80.0 MiB"),
     (3e17, "266 PiB"), (float("inf"), "no known limit")],
)  # fmt: skip
def test_a_size_is_never_all_zeros(num_bytes, text):
    assert memory.format_bytes(num_bytes) == text
