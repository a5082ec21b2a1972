"""What a process sets about itself, each tried in a child so that the test run keeps its own settings."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

from real_system import NOBODY, in_child, wait_until

from snapfs.system import libc, processes


def may_use_resources() -> bool:
    """CAP_SYS_RESOURCE, which even root lacks in some containers."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if "CapEff" in line]
    return bool(int(line.split()[1], 16) & 1 << 24)


def oom_score_after(adjustment: int) -> tuple[bool, int]:
    return processes.set_oom_score(adjustment), int(Path("/proc/self/oom_score_adj").read_text())


def test_the_oom_score_is_raised() -> None:
    assert in_child(lambda: oom_score_after(500)) == (True, 500)


def test_the_oom_score_is_lowered_where_that_is_permitted() -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text())
    permitted = may_use_resources()
    assert in_child(lambda: oom_score_after(-500)) == (permitted, -500 if permitted else own)


def test_a_user_who_may_not_lower_the_oom_score_gets_false() -> None:
    assert in_child(lambda: processes.set_oom_score(-500), user=NOBODY) is False


def test_a_process_becomes_an_io_flusher_where_that_is_permitted() -> None:
    def child() -> bool:
        return processes.set_io_flusher() and libc.prctl(libc.PR_GET_IO_FLUSHER, 0) == 1

    assert in_child(child) is may_use_resources()


def test_a_user_who_may_not_be_an_io_flusher_gets_false() -> None:
    assert in_child(processes.set_io_flusher, user=NOBODY) is False


def test_a_process_dies_with_its_parent() -> None:
    read_fd, write_fd = os.pipe()
    parent = os.fork()
    if parent == 0:
        if os.fork() == 0:
            processes.die_with_parent(signal.SIGKILL)
            os.write(write_fd, str(os.getpid()).encode())
            signal.pause()
        signal.pause()
    os.close(write_fd)
    grandchild = int(os.read(read_fd, 20))
    assert processes.process_start_time(grandchild) is not None
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    os.close(read_fd)
    wait_until(lambda: processes.process_start_time(grandchild) is None)


def test_a_parent_that_has_ended_already_counts_too() -> None:
    pid = os.fork()
    if pid == 0:
        processes.die_with_parent(signal.SIGTERM, parent_pid=os.getppid() + 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM


def test_a_kept_heap_takes_no_new_pages_for_each_buffer() -> None:
    def faults_of_200_buffers() -> tuple[bool, int]:
        kept = processes.keep_heap()
        bytes(1 << 20)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(200):
            bytearray(b"x" * (1 << 20))
        return kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    kept, faults = in_child(faults_of_200_buffers)
    assert kept
    assert faults < 2000  # 200 buffers of 256 pages, twice, would be 102400


def test_a_process_is_named_by_at_most_15_bytes() -> None:
    def child() -> tuple[bool, str]:
        return processes.set_process_name("snapfs-live-server"), Path("/proc/self/comm").read_text()

    assert in_child(child) == (True, "snapfs-live-ser\n")


def test_the_boot_id_stays_the_same() -> None:
    assert processes.boot_id() == processes.boot_id()
    assert len(processes.boot_id()) == 36


def test_the_start_time_belongs_to_one_process() -> None:
    own = processes.process_start_time(os.getpid())
    first = processes.process_start_time(1)
    assert own is not None
    assert first is not None
    assert own > first


def test_a_name_with_parentheses_does_not_confuse_the_start_time() -> None:
    def child() -> bool:
        before = processes.process_start_time(os.getpid())
        processes.set_process_name("a) Z 1 (b")
        return before == processes.process_start_time(os.getpid())

    assert in_child(child)


def test_an_ended_process_has_no_start_time_even_before_it_is_reaped() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert processes.process_start_time(process.pid) is None
    assert processes.process_start_time(process.pid) is None


def test_a_program_finds_nothing_in_the_directory_that_it_runs_in(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('another one')")
    subprocess.run([*processes.program("json.tool"), "--help"], cwd=tmp_path, capture_output=True, check=True)


def test_a_program_is_as_isolated_as_the_process_that_runs_it(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('another one')")
    run_it = "import subprocess; from snapfs.system import processes"
    run_it += "; subprocess.run([*processes.program('json.tool'), '--help'], check=True)"
    words = [sys.executable, "-I", "-c", run_it]
    subprocess.run(words, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, check=True)
