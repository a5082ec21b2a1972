"""The commands of `rbd` that backups need, and what they say. Source: rbd(8) of Ceph.

Which cluster, and who asks, is Ceph's own configuration: /etc/ceph/ceph.conf, CEPH_CONF, CEPH_ARGS.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Final

from snapfs.errors import BackupDamagedError, SnapfsError, UsageError

SCHEME: Final = "rbd:"
_SPEC: Final = re.compile(r"rbd:([^/@]+(?:/[^/@]+)?/[^/@]+)(?:@([^/@]+))?")
_COMMAND_S: Final = 600.0
_NOT_FOUND: Final = 2


@dataclass(frozen=True)
class RbdImage:
    """POOL/IMAGE, or POOL/NAMESPACE/IMAGE."""

    spec: str

    def __str__(self) -> str:
        return SCHEME + self.spec

    def size_bytes(self) -> int | None:
        """None: there is no such image."""
        done = _run("info", "--format", "json", self.spec)
        if done.returncode == _NOT_FOUND:
            return None
        return int(_answer(done, f"{self} cannot be looked at")["size"])

    def snapshots(self) -> list[str]:
        """Their names, oldest first."""
        done = _run("snap", "ls", "--format", "json", self.spec)
        found = _answer(done, f"The snapshots of {self} cannot be listed")
        return [str(one["name"]) for one in sorted(found, key=lambda one: int(one["id"]))]

    def noted(self, name: str) -> str | None:
        """What was noted of the image under that name."""
        done = _run("image-meta", "get", self.spec, name)
        if done.returncode == _NOT_FOUND:
            return None
        _check(done, f"The metadata of {self} cannot be read")
        return done.stdout.rstrip("\n")

    def note(self, name: str, value: str) -> None:
        _check(_run("image-meta", "set", self.spec, name, value), f"The metadata of {self} cannot be written")

    def create(self, size_bytes: int) -> None:
        _check(_run("create", "--size", f"{size_bytes}B", self.spec), f"{self} cannot be made")

    def remove(self) -> None:
        _check(_run("rm", "--no-progress", self.spec), f"{self} cannot be removed")

    def is_changed_since(self, snapshot: str) -> bool:
        """Whether the image itself holds something else than the snapshot."""
        done = _run("diff", "--format", "json", "--from-snap", snapshot, self.spec)
        return bool(_answer(done, f"{self} cannot be compared with its snapshot"))

    def roll_back(self, snapshot: str) -> None:
        done = _run("snap", "rollback", "--no-progress", f"{self.spec}@{snapshot}")
        _check(done, f"{self} cannot be made {snapshot} again")

    @contextlib.contextmanager
    def importing(self) -> Iterator[int]:
        """A pipe for a diff, as its descriptor; SnapfsError when rbd did not take it, and why."""
        process = _start("import-diff", "--no-progress", "-", self.spec, stdin=subprocess.PIPE)
        assert process.stdin is not None
        try:
            yield process.stdin.fileno()
        except SnapfsError as error:
            said = _end(process)
            raise SnapfsError(f"{error.sentence.rpartition(';')[0]} ({said}); back up again.") from error
        except BaseException:
            process.kill()
            _end(process)
            raise
        if said := _end(process):
            raise SnapfsError(f"{self} did not take the backup: {said}; back up again.")

    @contextlib.contextmanager
    def exporting(self, snapshot: str) -> Iterator[IO[bytes]]:
        """All of a snapshot as a diff."""
        process = _start("export-diff", "--no-progress", f"{self.spec}@{snapshot}", "-", stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            yield process.stdout
        except BackupDamagedError as error:
            # What it said of its end says more.
            if said := _end(process):
                raise SnapfsError(f"{self}@{snapshot} cannot be read: {said}; see ceph status.") from error
            raise
        finally:
            process.kill()
            _end(process)


def parse_spec(text: str) -> tuple[RbdImage, str | None]:
    """The image, and the snapshot of it, of rbd:POOL/IMAGE[@SNAP]."""
    found = _SPEC.fullmatch(text)
    if found is None:
        raise UsageError(f"{text} names no image in a pool; give rbd:POOL/IMAGE, with @SNAP for a backup in it.")
    return RbdImage(found[1]), found[2]


def _start(*words: str, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    _check_tool()
    return subprocess.Popen(
        ["rbd", *words], stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, start_new_session=True
    )


def _end(process: subprocess.Popen[bytes]) -> str:
    """What it said of its failure; nothing when it had none."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.stdin = None
    if process.stdout is not None:
        process.stdout.close()
        process.stdout = None
    _, said = process.communicate() if process.stderr and not process.stderr.closed else (b"", b"")
    return _last_line(said.decode(errors="replace"), process.returncode) if process.returncode else ""


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    _check_tool()
    try:
        return subprocess.run(
            ["rbd", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMMAND_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SnapfsError(f"rbd {words[0]} does not come to an end; see ceph status.") from error


def _answer(done: subprocess.CompletedProcess[str], what: str) -> Any:
    _check(done, what)
    return json.loads(done.stdout)


def _check(done: subprocess.CompletedProcess[str], what: str) -> None:
    if done.returncode:
        raise SnapfsError(
            f"{what}: {_last_line(done.stderr, done.returncode)}; see ceph status and the rights there."
        )


def _last_line(said: str, code: int) -> str:
    lines = said.strip().splitlines()
    return lines[-1].rstrip(".") if lines else f"rbd ended with code {code}"


def _check_tool() -> None:
    if shutil.which("rbd") is None:
        raise SnapfsError("A backup into a Ceph pool needs rbd, which is not installed; install ceph-common.")
