"""`snapfs mount`: check everything that can be checked, lock the image, open the store; then the daemon has it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cow import Counter, Files, Image, Opened, Outcome, State
from snapfs.commands.daemon import run_behind, run_in_front
from snapfs.commands.opening import LET_GO_S, LOOK_S, opened_store
from snapfs.errors import BusyError, DoneWithProblem, ExitCode, SnapfsError
from snapfs.events.hooks import check_hooks
from snapfs.options import MountOptions
from snapfs.servers.half_way import target_of
from snapfs.servers.instance import Instance
from snapfs.stamps import utc_text
from snapfs.system.default_store import check_whole, default_store, prepare_store
from snapfs.system.discovery import believed_mounts
from snapfs.system.fuse_access import check_fuse_access
from snapfs.system.holders import holders_of_image
from snapfs.system.image_lock import lock_image
from snapfs.system.image_probe import check_image_unused, check_is_image, open_image
from snapfs.system.mounts import canonical_path, clear_stale, is_stale
from snapfs.system.place import check_mount_points, check_store_place
from snapfs.system.processes import allow_open_files
from snapfs.system.signals import Signals
from snapfs.system.store_files import remove_held

# By what their files begin with: qcow2 and qcow, sparse VMDK, VHDX, VDI.
_CONTAINERS: Final = {b"QFI\xfb": "qcow2", b"KDMV": "VMDK", b"vhdxfile": "VHDX", b"<<< ": "VDI"}
_MAGIC_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Mounted:
    """What became of a mount: where things are, and sentences for the user about what was found. `taken_at` is None
    when there is no snapshot."""

    live_file: Path
    snap_file: Path
    store: Path
    taken_at: str | None
    state: str
    outcome: Outcome
    notes: tuple[str, ...]


def mount(options: MountOptions, announce: Callable[[Mounted], None]) -> int:
    """Mount; `announce` is called when both views answer. With `foreground` returns when the instance ends.

    SnapfsError: nothing is mounted, and nothing is left behind that was not there before.
    """
    # What the store holds is nobody else's, whatever this user's own files are like.
    os.umask(0o077)
    # The servers inherit it, and each snapshot has its files open.
    allow_open_files()
    options = _resolved(options)
    check_fuse_access(options.fuse_options)
    check_is_image(options.image)
    if options.on_event is not None:
        check_hooks(options.on_event)
    store_path = prepare_store(options.image, options.store)
    if store_path != default_store(options.image):
        check_whole(options.image)
    with Signals.handled() as signals:
        with _opened(options, store_path, signals) as (instance, opened, notes):
            mounted = _describe(instance, opened, notes)
            if options.foreground:
                return run_in_front(instance, lambda: announce(mounted))
            run_behind(instance, signals)
        return _announced(mounted, lambda: announce(mounted))


def _announced(mounted: Mounted, announce: Callable[[], None]) -> int:
    """Say what is where. DoneWithProblem when that cannot be said: everything is mounted all the same."""
    try:
        announce()
    except SnapfsError as error:
        raise DoneWithProblem(
            f"{mounted.live_file} is mounted, but that cannot be said: {error.sentence}", path=mounted.live_file
        ) from error
    return ExitCode.DONE


def _resolved(options: MountOptions) -> MountOptions:
    """The same with absolute paths: the daemon does not stay in the caller's directory."""
    return replace(
        options,
        image=canonical_path(options.image),
        live=canonical_path(options.live),
        snap=canonical_path(options.snap),
        store=None if options.store is None else canonical_path(options.store),
        on_event=None if options.on_event is None else canonical_path(options.on_event),
    )


@contextlib.contextmanager
def _opened(
    options: MountOptions, store_path: Path, signals: Signals
) -> Iterator[tuple[Instance, Opened, list[str]]]:
    notes = _clear_stale(options)
    check_mount_points(options.live, options.snap)
    check_store_place(store_path, options.live, options.snap)
    image_fd, size_bytes = _lock(options.image)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, image_fd)
        files = Files()
        image = Image(image_fd, size_bytes, files)
        with signals.deferred():
            opened = opened_store(store_path, image, options, files, signals)
            instance = Instance(options, options.image, options.live, options.snap, opened.store, image)
            stack.callback(opened.store.close)
            stack.push(lambda kind, *_: _undo(instance, signals) if kind else None)
            is_new = opened.outcome is not Outcome.CARRIED_ON
            opened.store.control.is_unseen = is_new
            opened.store.control[Counter.LIMIT_BYTES] = options.buffer_limit_bytes or 0
        signals.check()
        notes += _container_notes(image_fd, options.image)
        if target := target_of(opened.store):
            notes.append(f"{target.half_way(options.image, options.live / options.image.name)}.")
        if options.skip_swap and not is_new:
            notes.append("Swap space counts as it did when this snapshot was taken; --skip-swap is for new cuts.")
        yield instance, opened, notes


def _container_notes(image_fd: int, path: Path) -> list[str]:
    """Of a file that holds a disk in a format of its own, the views show the file, which is seldom what is meant."""
    start = os.pread(image_fd, _MAGIC_BYTES, 0)
    return [
        f"{path} begins as a {name} file does: the views show that file, not the disk in it (qemu-img convert makes "
        "a raw image of it)."
        for magic, name in _CONTAINERS.items()
        if start.startswith(magic)
    ]


def _undo(instance: Instance, signals: Signals) -> None:
    """Something went wrong; a snapshot that nobody has seen is of no use to anybody."""
    with signals.deferred():
        if instance.store.control.is_unseen and not instance.keeps_store:
            with contextlib.suppress(FileNotFoundError):  # the daemon has been quicker
                remove_held(instance.store.path)


def _clear_stale(options: MountOptions) -> list[str]:
    """Unmount what a killed instance left at our mount points."""
    cleared = clear_stale(options.live, options.snap)
    return [f"A stale mount of a killed snapfs was cleared from {point}." for point in cleared]


def _lock(image: Path) -> tuple[int, int]:
    """Open the image for ourselves alone; waits while a killed instance is letting go of it."""
    until = time.monotonic() + LET_GO_S
    while True:
        try:
            return _try_lock(image)
        except BusyError:
            if time.monotonic() > until or not _is_let_go(image):
                raise
        time.sleep(LOOK_S)


def _try_lock(image: Path) -> tuple[int, int]:
    check_image_unused(image)
    opened = open_image(image)
    try:
        lock_image(opened.fd)
    except BaseException:
        os.close(opened.fd)
        raise
    return opened.fd, opened.size_bytes


def _is_let_go(image: Path) -> bool:
    """Whether nobody but the servers of an instance that is ending uses the image."""
    if any(Path(found.source) == image and not is_stale(found) for found in believed_mounts()):
        return False
    return all(holder.kind == "snapfs" or "(snapfs" in holder.description for holder in holders_of_image(image))


def _describe(instance: Instance, opened: Opened, notes: list[str]) -> Mounted:
    store = instance.store
    shown, cut = store.header.shown, store.newest_shown
    return Mounted(
        live_file=instance.live / instance.view_name,
        snap_file=instance.snap / instance.view_name,
        store=instance.store_path,
        taken_at=utc_text(shown[-1].taken_at_ns) if shown else None,
        state=(State.NONE if cut is None else cut.numbers.state).name.lower(),
        outcome=opened.outcome,
        notes=(*notes, *(f"{note[0].upper()}{note[1:]}." for note in opened.notes)),
    )
