"""Free memory as machines and containers tell it; freed memory that stays with the process."""

import os
import subprocess
import sys

import pytest
import torch

from simcse_fast import memory

CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 8 GB available, and a container whose limit and use a test writes."""
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    files = (tmp_path / "max", tmp_path / "used", tmp_path / "stat", "inactive_file")
    monkeypatch.setattr(memory, "CONTAINERS", (files,))

    def contain(limit: str, used: str, cached: str = "0") -> None:
        (tmp_path / "max").write_text(limit)
        (tmp_path / "used").write_text(used)
        (tmp_path / "stat").write_text(f"anon 5\ninactive_file {cached}\n")

    return contain


def test_without_a_container_what_the_machine_has_available(machine):
    assert memory.free_memory(CPU) == 8_000_000 * 1024


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [
        ("3000000000\n", "1000000000\n", 2_000_000_000),
        ("1000\n", "2000\n", 0),
        ("max\n", "1000\n", 8_000_000 * 1024),
        ("99000000000\n", "5\n", 8_000_000 * 1024),
    ],
)
def test_a_container_has_what_its_limit_leaves(machine, limit, used, free):
    machine(limit, used)
    assert memory.free_memory(CPU) == free


def test_files_that_a_container_has_read_are_free_memory(machine):
    machine("3000000000\n", "2500000000\n", "1500000000")
    assert memory.free_memory(CPU) == 2_000_000_000


def test_a_machine_that_does_not_say(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "missing")
    monkeypatch.setattr(os, "sysconf_names", {"SC_AVPHYS_PAGES": 1})
    monkeypatch.setattr(os, "sysconf", {"SC_AVPHYS_PAGES": 7, "SC_PAGE_SIZE": 4096}.get)
    assert memory.free_memory(CPU) == 7 * 4096
    monkeypatch.setattr(os, "sysconf_names", {})
    assert memory.free_memory(CPU) == 0


AGAIN = """
import resource
import torch
from simcse_fast.memory import keep_freed_memory

keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    parts = [torch.ones(1 << 20) for _ in range(50)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""
PAGES = 50 * (4 << 20) // os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="glibc's mallopt")
@pytest.mark.parametrize("chosen", [True, False])
def test_freed_memory_stays_unless_the_user_chose_otherwise(chosen):
    environment = {k: v for k, v in os.environ.items() if k not in memory.CHOSEN}
    if chosen:
        environment["MALLOC_TRIM_THRESHOLD_"] = "131072"
    done = subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, "-c", AGAIN], env=environment, capture_output=True, text=True, check=True
    )
    faults = int(done.stdout)
    assert faults > PAGES / 2 if chosen else faults < PAGES / 4
