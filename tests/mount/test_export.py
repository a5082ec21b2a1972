"""`snapfs export`: a snapshot as NBD clients see it."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ground import Ground
from mounted import SNAPFS, Mounted, run, snapfs, wait_until

MIB = 1 << 20
BLOCK_BYTES = 4096
DIRTY = "qemu:dirty-bitmap:changed"


@contextmanager
def exported(*words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """The command, ready."""
    command = [SNAPFS, "export", *words, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline(), process.stderr.read()
            yield process
        finally:
            process.terminate()
            process.wait(20)


def of_socket(path: Path) -> str:
    return f"nbd+unix:///?socket={path}"


# Of this process alone: of a port that it finds free on an address of all, anybody may be quicker to make use.
HOST = ".".join(map(str, (127, 1 + os.getpid() // 2**16 % 250, os.getpid() // 2**8 % 256, os.getpid() % 256)))


def free_port() -> int:
    with socket.create_server((HOST, 0)) as one:
        port: int = one.getsockname()[1]
    return port


def used_extents(path: Path, snapshot: str) -> list[tuple[int, int]]:
    found = json.loads(snapfs("map", path, "--snapshot", snapshot, "--json").stdout)["extents"]
    return [(one["start"], one["length"]) for one in found if one["data"]]


def extents_of(uri: str, context: str, kind: str) -> list[tuple[int, int]]:
    found = json.loads(run("nbdinfo", "--json", f"--map={context}", uri))
    return [(one["offset"], one["length"]) for one in found if one["description"] == kind]


@pytest.fixture(scope="module")
def two(module_ground: Ground) -> Mounted:
    """An ext4 in which a file was deleted and another made between the snapshots one and two."""
    image = module_ground.image(64 * MIB)
    run("mkfs.ext4", "-q", image)
    instance = module_ground.mounted(image)
    device = module_ground.loop(instance.live_file)
    root = module_ground.mount(device)
    (root / "first").write_bytes(os.urandom(3 * MIB))
    for name in ("one", "two"):
        instance.cut("--name", name)
        (root / "second").write_bytes(os.urandom(2 * MIB))
        (root / "first").unlink(missing_ok=True)
    run("umount", root)
    return instance


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_copy_is_the_snapshot(two: Mounted, tmp_path: Path, name: str) -> None:
    uri, copy = of_socket(tmp_path / "socket"), tmp_path / "copy.img"
    with exported(two.live, uri, "--snapshot", name):
        run("nbdcopy", uri, copy)
    assert copy.read_bytes() == (two.snap / ".snapshots" / name / two.image.name).read_bytes()


def test_what_is_free_is_a_hole(two: Mounted, tmp_path: Path) -> None:
    uri = of_socket(tmp_path / "socket")
    with exported(two.live, uri, "--snapshot", "one"):
        assert extents_of(uri, "base:allocation", "data") == used_extents(two.live, "one")


def test_tools_of_qemu_read_it(two: Mounted, tmp_path: Path) -> None:
    uri, copy = of_socket(tmp_path / "socket"), tmp_path / "copy.qcow2"
    with exported(two.live, uri):
        run("qemu-img", "convert", "-O", "qcow2", uri, copy)
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", copy, two.snap_file)
    assert copy.stat().st_blocks * 512 < 16 * MIB


def test_what_differs_from_an_older_one_is_a_dirty_bitmap(two: Mounted) -> None:
    uri = f"nbd://{HOST}:{free_port()}"
    with exported(two.live, uri, "--snapshot", "two", "--since", "one"):
        dirty = extents_of(uri, DIRTY, "dirty")
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, two.snap_file)
    older, newer = ((two.snap / ".snapshots" / name / two.image.name).read_bytes() for name in ("one", "two"))
    copy = bytearray(older)
    for start, length in dirty:
        copy[start : start + length] = newer[start : start + length]
    # Also where only a file was deleted: that reads as zeros now.
    assert copy == newer
    assert sum(length for _, length in dirty) < 8 * MIB


def test_the_socket_is_its_owner_s_and_goes_with_the_command(two: Mounted, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with exported(two.live, of_socket(path)) as process:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o022
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert not path.exists()


def test_a_killed_command_serves_nobody_any_more(two: Mounted, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with exported(two.live, of_socket(path)) as process:
        process.kill()
        with socket.socket(socket.AF_UNIX) as one:
            wait_until(lambda: one.connect_ex(str(path)))


def test_it_ends_with_the_snapshot(ground: Ground) -> None:
    instance = ground.mounted(ground.image(MIB))
    assert snapfs("snapshot", instance.live, "--name", "one").returncode == 0
    with exported(instance.live, of_socket(ground.path / "socket"), "--snapshot", "one") as process:
        assert snapfs("delete", instance.live, "one").returncode == 0
        assert process.wait(20) == 1
        assert process.stderr is not None
        assert "was deleted meanwhile" in process.stderr.read()


def test_over_tls(two: Mounted, tmp_path: Path) -> None:
    certificates = tmp_path / "certificates"
    certificates.mkdir()
    key, own = certificates / "server-key.pem", certificates / "server-cert.pem"
    run(
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        key,
        "-out",
        own,
        "-subj",
        f"/CN={HOST}",
        "-addext",
        f"subjectAltName=IP:{HOST}",
    )
    (certificates / "ca-cert.pem").write_bytes(own.read_bytes())
    port = free_port()
    uri = f"nbds://{HOST}:{port}"
    with exported(two.live, uri, "--tls-certificates", certificates):
        assert "with TLS" in run("nbdinfo", f"{uri}/?tls-verify-peer=false&tls-certificates={certificates}")
        assert subprocess.run(["nbdinfo", f"nbd://{HOST}:{port}"], capture_output=True, check=False).returncode


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("nbd://0.0.0.0",), 2, "could read the whole image"),
        (("nbds://localhost",), 2, "belong together"),
        (("nbd://localhost", "--tls-certificates", "."), 2, "belong together"),
        (("nbd+unix:///?socket=/none/socket",), 1, "no directory"),
        (("nbd+unix:///?socket=/tmp/s", "--snapshot", "none"), 1, "has no snapshot none"),
        (("nbd+unix:///?socket=/tmp/s", "--since", "none"), 1, "has no snapshot none"),
    ],
)
def test_what_cannot_be_is_refused(two: Mounted, words: tuple[str, ...], code: int, sentence: str) -> None:
    done = snapfs("export", two.live, *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_told(two: Mounted) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        done = snapfs("export", two.live, f"nbd://127.0.0.1:{one.getsockname()[1]}")
    assert done.returncode == 1
    assert "already; give another port" in done.stderr
