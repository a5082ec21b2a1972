"""The commands of restic that backups need, and what they say. Source: its manual and its scripting chapter.

Which password, which account of a store and all else is the repository's own configuration: RESTIC_*, AWS_* and the
like in the environment. Where it is goes there too, so that no list of processes shows a password in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final
from urllib.parse import quote

from snapfs.errors import BackupDamagedError, SnapfsError, UsageError
from snapfs.stamps import local_time
from snapfs.system.processes import die_with_parent

SCHEME: Final = "restic:"
TAG: Final = "snapfs"
_SPEC: Final = re.compile(r"restic:(.*?)(?:@([0-9a-f]{8,64}|latest))?", re.DOTALL)
_PASSWORD: Final = re.compile(r"(://[^/:@]*):[^/@]*@")
# What separates tags, or is at an end of one, would not come back.
_SAFE: Final = "/!#$&'()*+:;=?@[]~"
_IMAGE: Final = "image:"
_REPORTS_A_SECOND: Final = "4"
_MAX_SAID_BYTES: Final = 64 << 10
_END_S: Final = 5.0


@dataclass(frozen=True)
class Stored:
    """A backup in a repository: a snapshot there, of one folder. `image` is as `tags_of` has it, "" without."""

    id: str
    short_id: str
    host: str
    image: str
    folder: PurePosixPath


@dataclass(frozen=True)
class Summary:
    """What restic says of a backup that it has made; `id` is that of its snapshot."""

    id: str
    files_new: int
    files_changed: int
    files_unmodified: int
    added_bytes: int


@dataclass(frozen=True)
class Repository:
    """What restic takes as -r; "" is RESTIC_REPOSITORY or RESTIC_REPOSITORY_FILE."""

    place: str

    def __str__(self) -> str:
        return SCHEME + _PASSWORD.sub(r"\1:***@", self.place)

    def check(self) -> None:
        """SnapfsError unless it is there, and opens."""
        self._run("cat", "config", "--no-lock", what=f"{self} cannot be opened")

    def backups(self, snapshot: str | None) -> list[Stored]:
        """Those with our tag, oldest first; or the one snapshot of that id, whoever made it."""
        chosen = [f"--tag={TAG}"] if snapshot is None else [snapshot]
        done = self._run("snapshots", "--json", *chosen, what=f"The snapshots of {self} cannot be listed")
        found = sorted(json.loads(done) or [], key=lambda one: local_time(one["time"]))
        return [_stored(one) for one in found if len(one["paths"]) == 1]

    def back_up(self, folder: Path, tags: Sequence[str], taken_at: str, advance: Callable[[int], None]) -> Summary:
        """Make a backup of that time. `advance` is told of every so many more bytes, and what it raises ends it.
        SnapfsError: there is none."""
        words = [*(f"--tag={tag}" for tag in tags), f"--time={_local(taken_at)}", "--", str(folder)]
        done_bytes, summary = 0, None
        with self._started("backup", "--json", *words) as (process, said):
            for message in map(_message, _stdout(process)):
                if message.get("message_type") == "summary":
                    summary = _summary(message)
                elif "bytes_done" in message:
                    advance(int(message["bytes_done"]) - done_bytes)
                    done_bytes = int(message["bytes_done"])
            code = process.wait()
        if summary is None or code:
            if summary is not None:
                self.forget(summary.id)
            raise self._error(f"{self} did not take the backup", said(), code)
        return summary

    def forget(self, snapshot: str) -> None:
        """Let it go. SnapfsError says that it is there, and is no backup."""
        self._run("forget", snapshot, what=f"Snapshot {snapshot} in {self} is no whole backup, and is still there")

    def files(self, stored: Stored) -> list[tuple[str, int]]:
        """The name and the size of each file in the folder."""
        done = self._run(
            "ls", "--json", stored.id, str(stored.folder), what=f"{self}@{stored.short_id} cannot be read"
        )
        nodes = [json.loads(line) for line in done.splitlines()]
        return [(str(one["name"]), int(one.get("size", 0))) for one in nodes if one.get("type") == "file"]

    @contextlib.contextmanager
    def dumped(self, stored: Stored) -> Iterator[IO[bytes]]:
        """The folder as a stream of tar. SnapfsError instead of what the reader raises, when restic says why."""
        with self._started("dump", "--archive=tar", stored.id, str(stored.folder)) as (process, said):
            stream = _stdout(process)
            try:
                yield stream
                # Whatever comes after the end of an archive.
                while stream.read(1 << 20):
                    pass
                code = process.wait()
            except BackupDamagedError as error:
                # What restic says of its end, if that is why, says more.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    if code := process.wait(_END_S):
                        raise self._error(f"{self}@{stored.short_id} cannot be read", said(), code) from error
                raise
        if code:
            raise self._error(f"{self}@{stored.short_id} cannot be read", said(), code)

    # --- processes -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _started(self, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
        """restic, and what it has said on its standard error; it ends with the block, as when interrupted."""
        if shutil.which("restic") is None:
            raise SnapfsError(f"{self} needs restic, which is not installed; install restic.")
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                ["restic", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self._environment(),
                # Ctrl-C is for us, and we end it; it hears of nothing else, and takes its lock away then.
                start_new_session=True,
                preexec_fn=partial(_be_ended, os.getpid()),
            )
            try:
                yield process, lambda: os.pread(errors.fileno(), _MAX_SAID_BYTES, 0).decode(errors="replace")
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
                    process.wait()
                # Not before: a pipe that breaks kills it, and its lock stays.
                _stdout(process).close()

    def _environment(self) -> dict[str, str]:
        environment = {"RESTIC_PROGRESS_FPS": _REPORTS_A_SECOND, **os.environ}
        if self.place:
            environment.pop("RESTIC_REPOSITORY_FILE", None)
            environment["RESTIC_REPOSITORY"] = self.place
        return environment

    def _run(self, *words: str, what: str) -> str:
        with self._started(*words) as (process, said):
            out = _stdout(process).read()
            code = process.wait()
            if code:
                raise self._error(what, said(), code)
        return out.decode(errors="replace")

    def _error(self, what: str, said: str, code: int) -> SnapfsError:
        return SnapfsError(
            f"{what}: {_reason(said) or f'restic ended with code {code}'}; see whether restic snapshots works with "
            "the same RESTIC_ variables (restic init makes a repository)."
        )


def parse_spec(text: str) -> tuple[Repository, str | None]:
    """The repository, and the id of a snapshot in it, of restic:REPOSITORY[@ID]."""
    found = _SPEC.fullmatch(text)
    if found is None:
        raise UsageError(f"{text} names no repository; give restic:REPOSITORY, with @ID for a backup in it.")
    return Repository(found[1]), found[2]


def tags_of(image: Path | str, cut_id: str) -> list[str]:
    """Those of a backup."""
    return [TAG, _IMAGE + quote(os.fsencode(image), safe=_SAFE), f"cut:{cut_id}"]


def _be_ended(parent_pid: int) -> None:
    """In the child: it hears SIGINT, whatever its parent was started with, and gets it when that ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    die_with_parent(signal.SIGINT, parent_pid)


def _stored(one: dict[str, Any]) -> Stored:
    images = [tag.removeprefix(_IMAGE) for tag in one.get("tags") or () if tag.startswith(_IMAGE)]
    folder = PurePosixPath(one["paths"][0])
    return Stored(one["id"], one["short_id"], one.get("hostname", ""), images[0] if images else "", folder)


def _summary(message: dict[str, Any]) -> Summary:
    names = ("files_new", "files_changed", "files_unmodified", "data_added")
    return Summary(str(message["snapshot_id"]), *(int(message[name]) for name in names))


def _local(stamp: str) -> str:
    """A time as restic takes it, which then counts in the days of this place."""
    return f"{local_time(stamp):%Y-%m-%d %H:%M:%S}"


def _message(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _reason(said: str) -> str:
    """What restic says first of all that it says, and is no advice; of an error in JSON the place and the reason."""
    lines = [line for line in said.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("Fatal: ")]
    for line in [*fatal, *lines]:
        message = _message(line.encode())
        if message.get("message_type") == "error":
            error = message.get("error")
            why = error.get("message") or error.get("Err") if isinstance(error, dict) else error
            return f"{message.get('item')}: {why}"
        return line.removeprefix("Fatal: ").rstrip(".:").replace("; ", ", ")
    return ""


def _stdout(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None, "it is a pipe"
    return process.stdout
