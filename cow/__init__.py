"""The copy-on-write engine, by its public names; how it works and why it is right: DESIGN.md.

A name is loaded with the module that owns it when it is first used: whoever only asks a server loads no engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cow.compact.compactor import Compactor as Compactor
    from cow.disk.checkpoints import Checkpoint as Checkpoint
    from cow.disk.checkpoints import changed_in as changed_in
    from cow.disk.checkpoints import checkpoints_of as checkpoints_of
    from cow.disk.checkpoints import why_void as why_void
    from cow.disk.cut import Cut as Cut
    from cow.disk.directory import CONTROL_NAME as CONTROL_NAME
    from cow.disk.directory import LOCK_NAME as LOCK_NAME
    from cow.disk.directory import LOG_NAME as LOG_NAME
    from cow.disk.directory import foreign_names as foreign_names
    from cow.disk.directory import remove_store as remove_store
    from cow.disk.files import Files as Files
    from cow.disk.header import HEADER_NAME as HEADER_NAME
    from cow.disk.header import CutHeader as CutHeader
    from cow.disk.header import Header as Header
    from cow.disk.header import cut_header as cut_header
    from cow.disk.header import flush_header as flush_header
    from cow.disk.image import Image as Image
    from cow.disk.layout import CONTROL_MAGIC as CONTROL_MAGIC
    from cow.disk.layout import HEADER_MAGIC as HEADER_MAGIC
    from cow.disk.layout import MAX_DEVICE_ID_BYTES as MAX_DEVICE_ID_BYTES
    from cow.disk.layout import PART_BYTES as PART_BYTES
    from cow.disk.layout import Counter as Counter
    from cow.disk.layout import CutCounter as CutCounter
    from cow.disk.layout import Durability as Durability
    from cow.disk.layout import Protect as Protect
    from cow.disk.layout import State as State
    from cow.disk.plain import open_plain as open_plain
    from cow.disk.revert_note import read_revert_note as read_revert_note
    from cow.disk.served import count_preserved as count_preserved
    from cow.disk.served import served_before as served_before
    from cow.disk.store import Store as Store
    from cow.disk.store import open_reader as open_reader
    from cow.disk.times import PartTimes as PartTimes
    from cow.errors import BlockReleased as BlockReleased
    from cow.errors import BufferFull as BufferFull
    from cow.errors import CowError as CowError
    from cow.errors import Damaged as Damaged
    from cow.errors import EngineClosed as EngineClosed
    from cow.errors import NotAStore as NotAStore
    from cow.errors import OutOfRange as OutOfRange
    from cow.errors import SnapshotEnded as SnapshotEnded
    from cow.errors import SnapshotLost as SnapshotLost
    from cow.errors import StoreBusy as StoreBusy
    from cow.errors import StoreDamaged as StoreDamaged
    from cow.errors import StoreError as StoreError
    from cow.geometry import MAX_IMAGE_BYTES as MAX_IMAGE_BYTES
    from cow.live.cutting import discard_cut as discard_cut
    from cow.live.cutting import prepare_cut as prepare_cut
    from cow.live.dating import finish_times as finish_times
    from cow.live.dating import follow_times as follow_times
    from cow.live.dating import resume_times as resume_times
    from cow.live.engine import LiveEngine as LiveEngine
    from cow.live.overflow import Event as Event
    from cow.live.overflow import EventKind as EventKind
    from cow.live.overflow import OverflowPolicy as OverflowPolicy
    from cow.live.reverting import Revert as Revert
    from cow.live.size import stored_in as stored_in
    from cow.mount.check import Report as Report
    from cow.mount.check import verify as verify
    from cow.mount.dump import dump as dump
    from cow.mount.recovery import Opened as Opened
    from cow.mount.recovery import Outcome as Outcome
    from cow.mount.recovery import Request as Request
    from cow.mount.recovery import open_store as open_store
    from cow.seeking import SeekingReader as SeekingReader
    from cow.snapshot import SnapshotReader as SnapshotReader

_OWNERS = {
    "cow.compact.compactor": "Compactor",
    "cow.disk.checkpoints": "Checkpoint changed_in checkpoints_of why_void",
    "cow.disk.cut": "Cut",
    "cow.disk.directory": "CONTROL_NAME LOCK_NAME LOG_NAME foreign_names remove_store",
    "cow.disk.files": "Files",
    "cow.disk.header": "CutHeader HEADER_NAME Header cut_header flush_header",
    "cow.disk.image": "Image",
    "cow.disk.layout": "CONTROL_MAGIC Counter CutCounter Durability HEADER_MAGIC MAX_DEVICE_ID_BYTES PART_BYTES "
    "Protect State",
    "cow.disk.plain": "open_plain",
    "cow.disk.revert_note": "read_revert_note",
    "cow.disk.served": "count_preserved served_before",
    "cow.disk.store": "Store open_reader",
    "cow.disk.times": "PartTimes",
    "cow.errors": "BlockReleased BufferFull CowError Damaged EngineClosed NotAStore OutOfRange SnapshotEnded "
    "SnapshotLost StoreBusy StoreDamaged StoreError",
    "cow.geometry": "MAX_IMAGE_BYTES",
    "cow.live.cutting": "discard_cut prepare_cut",
    "cow.live.dating": "finish_times follow_times resume_times",
    "cow.live.engine": "LiveEngine",
    "cow.live.overflow": "Event EventKind OverflowPolicy",
    "cow.live.reverting": "Revert",
    "cow.live.size": "stored_in",
    "cow.mount.check": "Report verify",
    "cow.mount.dump": "dump",
    "cow.mount.recovery": "Opened Outcome Request open_store",
    "cow.seeking": "SeekingReader",
    "cow.snapshot": "SnapshotReader",
}
_OWNER_OF = {name: owner for owner, names in _OWNERS.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _OWNER_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_OWNER_OF[name]), name)
    globals()[name] = value
    return value
