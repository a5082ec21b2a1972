"""``snapfs mount``: check everything that can be checked, open the store, start the daemon, wait for both views."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import logging
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cow.errors import StoreBusy, StoreError
from cow.files import Files
from cow.image import Image
from cow.layout import MAX_DEVICE_ID_BYTES, Counter, Durability, Protect
from cow.recovery import Opened, Outcome, Request, open_store
from cow.store import LOG_NAME
from snapfs.commands.status import read_status
from snapfs.control import request as control_request
from snapfs.errors import BusyError, SnapfsError
from snapfs.log import configure_log
from snapfs.options import MountOptions
from snapfs.servers.instance import Instance
from snapfs.servers.report import utc_text
from snapfs.supervisor import Supervisor
from snapfs.system.default_store import prepare_default_store
from snapfs.system.device_identity import attachment, device_identity
from snapfs.system.discovery import believed_mounts
from snapfs.system.fuse_access import check_fuse_access
from snapfs.system.holders import holders_of_image
from snapfs.system.image_lock import lock_image
from snapfs.system.image_probe import check_image_unused, check_is_image, open_image
from snapfs.system.mounts import canonical_path, is_stale, snapfs_mounts, unmount
from snapfs.system.place import check_mount_points, check_store_place
from snapfs.system.processes import boot_id, detach_streams
from snapfs.system.stores import let_go, make_store, remove_held

_LOG = logging.getLogger(__name__)
# How long a killed instance may take to let go of its image, store and mount points.
_LET_GO_S = 15.0
_LOOK_S = 0.05
_READY = "ready"


@dataclass(frozen=True, slots=True)
class Mounted:
    """What became of a mount: where things are, and sentences for the user about what was found."""

    live_file: Path
    snap_file: Path
    store: Path
    taken_at: str
    state: str
    outcome: Outcome
    notes: tuple[str, ...]


def mount(options: MountOptions, announce: Callable[[Mounted], None]) -> int:
    """Mount; ``announce`` is called when both views answer. With ``foreground`` returns when the instance ends.

    SnapfsError: nothing is mounted, and nothing is left behind that was not there before.
    """
    options = _resolved(options)
    check_fuse_access(options.fuse_options)
    check_is_image(options.image)
    store_path = options.store or prepare_default_store(options.image)
    with _opened(options, store_path) as (instance, opened, notes):
        mounted = _describe(instance, opened, notes)
        run = _run_in_front if options.foreground else _run_behind
        try:
            return run(instance, lambda: announce(mounted))
        except SnapfsError:
            if opened.outcome is not Outcome.CARRIED_ON and not instance.keeps_store:
                remove_held(instance.store.path)
            raise


def _resolved(options: MountOptions) -> MountOptions:
    """The same with absolute paths: the daemon does not stay in the caller's directory."""
    return replace(
        options,
        image=canonical_path(options.image),
        live=canonical_path(options.live),
        snap=canonical_path(options.snap),
        store=None if options.store is None else canonical_path(options.store),
    )


@contextlib.contextmanager
def _opened(options: MountOptions, store_path: Path) -> Iterator[tuple[Instance, Opened, list[str]]]:
    notes = _clear_stale(options)
    check_mount_points(options.live, options.snap)
    check_store_place(store_path, options.live, options.snap)
    image_fd, size_bytes = _lock(options.image)
    try:
        files = Files()
        image = Image(image_fd, size_bytes, files)
        store, made = _make_store(store_path)
        opened = _open_made(store, made, store_path, image, options, files)
    except BaseException:
        os.close(image_fd)
        raise
    if options.skip_swap and opened.outcome is Outcome.CARRIED_ON:
        notes.append("Swap space counts as it did when this snapshot was taken; --skip-swap is for new cuts.")
    opened.store.control[Counter.LIMIT_BYTES] = options.buffer_limit_bytes or 0
    try:
        yield Instance(options, options.image, options.live, options.snap, opened.store, image), opened, notes
    finally:
        opened.store.close()
        os.close(image_fd)


def _clear_stale(options: MountOptions) -> list[str]:
    """Unmount what a killed instance left at our mount points."""
    notes = []
    for found in snapfs_mounts():
        if found.mount_point in (options.live, options.snap) and is_stale(found):
            with contextlib.suppress(SnapfsError):
                unmount(found.mount_point, lazy=True)
                notes.append(f"A stale mount of a killed snapfs was cleared from {found.mount_point}.")
    return notes


def _lock(image: Path) -> tuple[int, int]:
    """Open the image for ourselves alone; waits while a killed instance is letting go of it."""
    until = time.monotonic() + _LET_GO_S
    while True:
        try:
            return _try_lock(image)
        except BusyError:
            if time.monotonic() > until or not _is_let_go(image):
                raise
        time.sleep(_LOOK_S)


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


def _make_store(path: Path) -> tuple[Path, bool]:
    try:
        return make_store(path)
    except OSError as error:
        raise SnapfsError(
            f"The store {path} cannot be written: {error.strerror}; give another --store.", path=path
        ) from error


def _open_made(store: Path, made: bool, path: Path, image: Image, options: MountOptions, files: Files) -> Opened:
    try:
        return _open_store(store, path, image, options, files)
    except BaseException:
        if made:
            remove_held(store)
        let_go(store)
        raise


def _open_store(store: Path, path: Path, image: Image, options: MountOptions, files: Files) -> Opened:
    device_id = _device_id(image.fd)
    request = Request(
        image_path=str(options.image),
        block_bytes=options.block_bytes,
        boot_id=uuid.UUID(boot_id()).bytes,
        durability=Durability[options.durability.upper()],
        protect=Protect[options.protect.upper()],
        device_id=_stored(device_id or _attachment(image.fd)),
        device_id_lasts=device_id is not None,
        booted_ns=time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    )
    until = time.monotonic() + _LET_GO_S
    while True:
        try:
            return open_store(store, image, request, files)
        except StoreBusy as error:
            # The image is ours already: whoever has the store is on its way out, unless it has another image.
            if time.monotonic() > until or _serves_another(store, options.image):
                raise BusyError(
                    f"The store {path} {error.reason}; unmount that one first or give another --store.", path=path
                ) from error
        except StoreError as error:
            raise SnapfsError(
                f"The store {path} {error.reason}; give another --store, or remove it to begin a new snapshot.",
                path=path,
            ) from error
        except OSError as error:
            raise SnapfsError(
                f"The store {path} cannot be written: {error.strerror}; give another --store.", path=path
            ) from error
        time.sleep(_LOOK_S)


def _device_id(fd: int) -> str | None:
    status = os.fstat(fd)
    return device_identity(status.st_rdev) if stat.S_ISBLK(status.st_mode) else None


def _attachment(fd: int) -> str | None:
    status = os.fstat(fd)
    return attachment(status.st_rdev) if stat.S_ISBLK(status.st_mode) else None


def _stored(device_id: str | None) -> str:
    """As the store takes it: a longer one by its hash."""
    text = device_id or ""
    return text if len(os.fsencode(text)) <= MAX_DEVICE_ID_BYTES else hashlib.sha256(os.fsencode(text)).hexdigest()


def _serves_another(store: Path, image: Path) -> bool:
    """Whether a running instance has the store for an image other than ours."""
    try:
        return bool(read_status(store)["image"] != str(image))
    except SnapfsError:
        return False


def _describe(instance: Instance, opened: Opened, notes: list[str]) -> Mounted:
    header = instance.store.header
    return Mounted(
        live_file=instance.live / instance.view_name,
        snap_file=instance.snap / instance.view_name,
        store=instance.store_path,
        taken_at=utc_text(header.taken_at_ns),
        state=instance.store.control.state.name.lower(),
        outcome=opened.outcome,
        notes=(*notes, *(f"{note[0].upper()}{note[1:]}." for note in opened.notes)),
    )


# --- the daemon ----------------------------------------------------------------------------------------------


def _run_in_front(instance: Instance, announce: Callable[[], None]) -> int:
    configure_log(None, "snapfs")
    failures: list[str] = []

    def report(sentence: str) -> None:
        if sentence:
            failures.append(sentence)
        else:
            _await_views(instance)
            announce()

    code = Supervisor(instance, report).run()
    if failures:
        raise SnapfsError(failures[0])
    return code


def _run_behind(instance: Instance, announce: Callable[[], None]) -> int:
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    gc.freeze()  # the servers' share of this process's memory stays shared
    pid = os.fork()
    if not pid:
        os.close(read_fd)
        _become_daemon(instance, write_fd)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        # A line, not all there is: the servers have the pipe as well.
        answer = pipe.readline().decode(errors="replace").strip()
    if answer != _READY:
        os.waitpid(pid, 0)
        raise SnapfsError(answer or "snapfs died while it started; try again with -f to see why.")
    announce()
    return 0


def _become_daemon(instance: Instance, report_fd: int) -> None:
    """In the child: never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir("/")
        configure_log(instance.store.path / LOG_NAME, "snapfs")
        detach_streams(stderr_too=False)

        def report(sentence: str) -> None:
            if not sentence:
                _await_views(instance)
                detach_streams()
            os.write(report_fd, f"{sentence or _READY}\n".encode())
            os.close(report_fd)

        code = Supervisor(instance, report).run()
    except BaseException:
        _LOG.exception("snapfs failed")
    finally:
        os._exit(code)


def _await_views(instance: Instance) -> None:
    for point in (instance.live, instance.snap):
        os.stat(point / instance.view_name)
    control_request(instance.store.path, "begin-map")
