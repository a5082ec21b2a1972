"""Names with odd bytes in what the kernel says: nobody writes lines or fields of his own into it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_system import loop_device, mounted, silent_fuse_mount

from snapfs.system import mounts
from snapfs.system.block_devices import loop_devices
from snapfs.system.kernel_text import kernel_lines, kernel_name, kernel_value
from snapfs.system.mounts import parse_mountinfo_line
from snapfs.system.open_files import process_name, processes_using

# All that Python takes for the end of a line or for a blank, and what the kernel escapes.
ODD = b"a\rb\x0bc\x0cd\x1ce\x1df\x1eg\xc2\x85h\xe2\x80\xa8i\x1fj\tk l\nm\\n#o\xffp"
NAMES = st.binary(min_size=1, max_size=40).map(lambda name: b"/" + name.replace(b"\0", b"").replace(b"/", b""))
SOURCES = st.binary(max_size=40).map(lambda name: name.replace(b"\0", b""))


def escaped(name: bytes) -> bytes:
    """As the kernel's seq_escape does it for mountinfo."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in name)


@given(name=NAMES, source=SOURCES)
def test_a_name_comes_back_whatever_bytes_it_has(name: bytes, source: bytes) -> None:
    line = b"36 35 0:41 / %s rw shared:1 - fuse.snapfs %s rw,user_id=7" % (escaped(name), escaped(source))
    mount = parse_mountinfo_line(line)
    assert os.fsencode(mount.source) == source
    assert os.fsencode(mount.mount_point) == os.fsencode(Path(os.fsdecode(name)))
    assert mount.option("user_id") == "7"


@given(names=st.lists(NAMES, min_size=1, max_size=4))
def test_as_many_lines_as_the_kernel_wrote(tmp_path_factory: pytest.TempPathFactory, names: list[bytes]) -> None:
    path = tmp_path_factory.getbasetemp() / "lines"
    path.write_bytes(b"".join(escaped(name) + b"\n" for name in names))
    assert [os.fsencode(kernel_name(line)) for line in kernel_lines(path)] == names


def test_a_value_loses_its_newline_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "value").write_bytes(b"\n/srv/a\r\n\n")
    assert kernel_value(tmp_path / "value") == b"\n/srv/a\r\n"


@pytest.fixture
def odd_point(tmp_path: Path) -> Path:
    path = tmp_path / os.fsdecode(ODD)
    path.mkdir()
    return path


def test_an_odd_mount_is_found_and_hides_no_other(odd_point: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with silent_fuse_mount(odd_point, source="/srv/a\r1 2 0:3 / /x"), mounted("tmpfs", other, "-t", "tmpfs"):
        mount = mounts.find_mount(odd_point)
        assert mount is not None
        assert (mount.mount_point, mount.source) == (odd_point, "/srv/a\r1 2 0:3 / /x")
        assert mounts.is_mount_point(other)


def test_a_loop_device_on_an_odd_file_keeps_its_name(odd_point: Path) -> None:
    image = odd_point / "disk\r\n"
    image.write_bytes(bytes(1 << 20))
    with loop_device(image) as device:
        (loop,) = [loop for loop in loop_devices() if loop.block_device.path == device]
        assert loop.backing_path == image


def test_who_maps_or_holds_an_odd_file_is_named_by_it(odd_point: Path) -> None:
    with mounted("tmpfs", odd_point, "-t", "tmpfs"):
        file = odd_point / "open\r\nfile"
        file.write_bytes(b"x")
        script = "import sys; open(sys.argv[1]); f = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
        process = subprocess.Popen(
            ["python3", "-c", script, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        mount = mounts.find_mount(odd_point)
        assert mount is not None
        (holder,) = processes_using(mount)
        assert (holder.pid, str(file) in holder.description) == (process.pid, True)
        process.communicate("", timeout=30)


def test_the_name_of_a_process_may_hold_a_newline() -> None:
    process = subprocess.Popen(
        ["python3", "-c", "open('/proc/self/comm', 'w').write('a\\n\\rb'); print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert "a\n\rb" in process_name(process.pid)
    process.communicate(b"\n", timeout=30)
