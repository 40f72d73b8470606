"""The allocator's setting: seen in the pages that a process faults in when it allocates the same large block again."""

import os
import subprocess
import sys

import pytest

from linvit.allocator import keep_freed_memory

PAGES = 64 * 2**20 // os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0

COUNT = """
import multiprocessing, resource, sys, types

def faults():
    for _ in range(2):
        bytearray(b"x") * (64 * 2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        bytearray(b"x") * (64 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def in_a_process(method):
    with multiprocessing.get_context(method).Pool(1) as pool:
        return pool.apply(faults)
"""

COMMAND = """
if __name__ == "__main__":
    from linvit.cli import main as entry
    entry.COMMANDS["try"] = ("try_command", "")
    sys.modules["try_command"] = types.ModuleType("try_command")
    sys.modules["try_command"].run = lambda argv: print(faults(), *map(in_a_process, ("fork", "spawn"))) or 0
    sys.argv = ["linvit", "try"]
    entry.main()
"""

LIBRARY = """
if __name__ == "__main__":
    import linvit
    print(faults())
"""

pytestmark = pytest.mark.skipif(
    not (sys.platform == "linux" and os.confstr("CS_GNU_LIBC_VERSION")), reason="the allocator of Linux with glibc"
)


def counts(tmp_path, code: str, **environment: str) -> list[int]:
    script = tmp_path / "count.py"
    script.write_text(COUNT + code)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "LINVIT_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, script], env=clean | environment, capture_output=True, text=True, check=True, timeout=120
    )
    return [int(count) for count in done.stdout.split()]


def test_commands_and_their_processes_keep_freed_memory(tmp_path) -> None:
    found = counts(tmp_path, COMMAND)
    assert len(found) == 3
    assert all(count < PAGES / 10 for count in found), found


def test_it_can_be_switched_off(tmp_path) -> None:
    assert all(count >= 5 * PAGES * 0.9 for count in counts(tmp_path, COMMAND, LINVIT_MALLOC="system"))


def test_the_library_leaves_the_process_as_it_is(tmp_path) -> None:
    assert counts(tmp_path, LIBRARY)[0] >= 5 * PAGES * 0.9


@pytest.mark.parametrize(
    "environment",
    [
        {"LINVIT_MALLOC": "system"},
        {"MALLOC_MMAP_MAX_": "100"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=100"},
        {"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"},
    ],
)
def test_what_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    assert not keep_freed_memory()
    assert dict(os.environ) == before


def test_another_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINVIT_MALLOC", "jemalloc")
    with pytest.raises(ValueError, match="LINVIT_MALLOC must be keep or system, got 'jemalloc'"):
        keep_freed_memory()
