"""Opening the store of a mount: made, held by its descriptor, locked, and its snapshot carried on if there is one."""

from __future__ import annotations

import hashlib
import os
import stat
import time
import uuid
from pathlib import Path

from cow import (
    MAX_DEVICE_ID_BYTES,
    Durability,
    Files,
    Image,
    NotAStore,
    Opened,
    Protect,
    Request,
    StoreBusy,
    StoreDamaged,
    StoreError,
    open_store,
)
from snapfs.commands.status import read_status
from snapfs.errors import BusyError, SnapfsError, StoreDamagedError, shortage
from snapfs.options import MountOptions
from snapfs.system.device_identity import attachment, device_identity
from snapfs.system.lost_snapshots import is_noted_lost
from snapfs.system.processes import boot_id
from snapfs.system.signals import Signals
from snapfs.system.store_files import make_store, remove_held
from snapfs.system.stores import let_go

# How long a killed instance may take to let go of its image and store.
LET_GO_S = 15.0
LOOK_S = 0.05


def opened_store(path: Path, image: Image, options: MountOptions, files: Files, signals: Signals) -> Opened:
    """The store at `path`, made if need be, locked and open. SnapfsError: nothing of it is left that was not there
    before. While somebody who is ending still has it, it is waited for; a signal ends that."""
    try:
        store, made = make_store(path)
    except OSError as error:
        raise _store_error(path, error) from error
    try:
        return _open_store(store, path, image, options, files, signals)
    except BaseException:
        if made:
            remove_held(store)
        let_go(store)
        raise


def _store_error(path: Path, error: OSError) -> SnapfsError:
    sentence = f"The store {path} cannot be written: {error.strerror}; give another --store."
    return SnapfsError(shortage(error) or sentence, path=path)


def _open_store(
    store: Path, path: Path, image: Image, options: MountOptions, files: Files, signals: Signals
) -> Opened:
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
        is_lost=is_noted_lost,
        takes_snapshot=options.takes_snapshot,
    )
    until = time.monotonic() + LET_GO_S
    while True:
        try:
            return open_store(store, image, request, files)
        except StoreBusy as error:
            # The image is ours already: whoever has the store is on its way out, unless it has another image.
            signals.check()
            if time.monotonic() > until or _serves_another(store, options.image):
                raise BusyError(
                    f"The store {path} {error.reason}; unmount that one first or give another --store.", path=path
                ) from error
        except NotAStore as error:
            raise SnapfsError(f"The store {path} {error.reason}; give another --store.", path=path) from error
        except StoreError as error:
            kind = StoreDamagedError if isinstance(error, StoreDamaged) else SnapfsError
            raise kind(
                f"The store {path} {error.reason}; give another --store, or remove it to begin a new snapshot.",
                path=path,
            ) from error
        except OSError as error:
            raise _store_error(path, error) from error
        time.sleep(LOOK_S)


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
