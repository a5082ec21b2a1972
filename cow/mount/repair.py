"""Deciding what a store that was left behind still proves, and making it whole again.

====================  ==================  ==================  ===================  =============================
how it ended          index               settled             free                 numbers
====================  ==================  ==================  ===================  =============================
SEALED                by its digest       by its digest       by its digest        from the seal
KILLED                each entry checked  believed            by its own digest    believed
POWER_LOST (power)    from the records    ones believed       by its own digest    from the maps
====================  ==================  ==================  ===================  =============================

A map that is missing or not what its digest says is *broken*: it begins anew, empty, and is filled from the
others. A block that then is settled for no reason any more is lost: reads of it fail. A block that might have
been overwritten and passes for owed would be read wrong, so where that cannot be excluded nothing is read.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from cow.disk.blocks import count_lost
from cow.disk.directory import (
    CONTROL_NAME,
    INDEX_NAME,
    NUMBERS_NAME,
    SEGMENTS_NAME,
    STAGING_NAME,
    TOUCHED_NAME,
    UNREADABLE_NAME,
    cut_path,
)
from cow.disk.files import Files
from cow.disk.header import Header
from cow.disk.layout import (
    KEPT_STATES,
    MAX_SEGMENT_NO,
    Counter,
    CutCounter,
    Durability,
    State,
    Trait,
    numbers_with,
)
from cow.disk.mapped_file import MappedFile
from cow.disk.numbers import Control, CutNumbers, Page
from cow.disk.plain import check_directory, is_plain
from cow.disk.seal import Seal, broken_maps, free_is_noted, free_is_proven, map_files, sync_segments
from cow.disk.segment_files import first_unused
from cow.disk.served import is_read
from cow.disk.store import Store, expected_files
from cow.errors import CowError
from cow.mount.rebuild import (
    adopt_staging,
    assume_changed,
    distrust_index,
    drop_doubtful,
    find_first_slot,
    forget_staging,
    give_up,
    mark_unreadable,
    mend_index,
    recount,
    settle_preserved,
    touch_changed,
)

_PAGES: dict[str, type[Page]] = {CONTROL_NAME: Control, NUMBERS_NAME: CutNumbers}


class End(Enum):
    """How the last use of the store ended."""

    SEALED = "cleanly"
    KILLED = "with its processes"
    POWER_LOST = "with the machine"


def replace_unusable(path: Path, header: Header, generation: int, files: Files) -> set[str]:
    """Put an empty file in the place of each of a cut that is missing or cannot be the right one, and of those that
    all have in common; their names. So for the directory of segments."""
    cut, segments = cut_path(path, generation), path / SEGMENTS_NAME
    replaced = set() if segments.exists() else {SEGMENTS_NAME}
    if not cut.exists():
        cut.mkdir(0o700)
        (cut / UNREADABLE_NAME).touch(0o600)
    for directory in (cut, segments):
        directory.mkdir(0o700, exist_ok=True)
        check_directory(directory)
    for name, (file, size_bytes) in expected_files(path, header, generation).items():
        page = _PAGES.get(name)
        if is_plain(file, size_bytes) and (page is None or _is_page(page, file, files)):
            continue
        file.unlink(missing_ok=True)
        if page is not None:
            page(file, files, writable=True, create=True).close()
        else:
            MappedFile(file, size_bytes, files, writable=True, create=True).close()
        replaced.add(name)
    return replaced


def is_control(path: Path, files: Files) -> bool:
    """Whether the store has a control page that can be read."""
    return _is_page(Control, path / CONTROL_NAME, files)


def _is_page(kind: type[Page], path: Path, files: Files) -> bool:
    try:
        kind(path, files).close()
    except (OSError, ValueError, CowError):
        return False
    return True


def repair(store: Store, end: End, seal: Seal | None, replaced: set[str]) -> list[str]:
    """Make the maps of the store's present cut agree with what it holds; sentences on what is lost. For a chain of
    cuts of each in turn, the oldest first (`Store.of_each_cut`)."""
    numbers, pages = store.cut.numbers, {CONTROL_NAME, NUMBERS_NAME}
    _restore_numbers(store, seal, are_known=end is End.KILLED and not replaced & pages)
    if numbers[CutCounter.STATE] not in KEPT_STATES:
        # Nobody can read it any more, and its records may be gone already. The ring has what later cuts staged, too.
        if end is End.KILLED and not replaced & pages:
            adopt_staging(store)
        else:
            forget_staging(store)
        return []
    broken = (replaced | _broken_maps(store, seal)) - {STAGING_NAME}
    if end is End.KILLED and broken & pages:
        mark_unreadable(store)
        return ["the snapshot cannot be read any more: the store lost its numbers"]
    staged = adopt_staging(store) if end is End.KILLED else forget_staging(store)
    find_first_slot(store, staged)
    broken -= pages
    notes = _mend(store, end, broken, staged) if end is not End.SEALED or broken else []
    if give_up(store):
        settle_preserved(store)
        # Nobody misses them.
        for number in (CutCounter.LOST_BLOCKS, CutCounter.EXCUSED_BLOCKS, CutCounter.SPOILT_BLOCKS):
            numbers[number] = 0
    lost_blocks = numbers.lost_blocks
    if lost_blocks and not numbers[CutCounter.UNREADABLE] and is_read(store.header, store.cuts):
        notes.append(f"blocks of the snapshot that are lost and read as errors: {lost_blocks}")
    recount(store, records=end is End.POWER_LOST)
    if end is End.KILLED and store.header.durability is Durability.POWER:
        # A record that was written and not flushed may have been found and indexed: nothing would flush it later.
        sync_segments(store)
    return notes


def _restore_numbers(store: Store, seal: Seal | None, *, are_known: bool) -> None:
    cut, numbers = store.cut, store.cut.numbers
    store.control[Counter.GENERATION] = cut.generation
    for number in numbers_with(Trait.PASSING):
        store.page_of(number)[number] = 0
    if seal:
        seal.restore(store)
    elif not are_known:
        numbers[CutCounter.STATE] = State.ACTIVE
    elif numbers[CutCounter.STATE] not in State.__members__.values():
        numbers[CutCounter.STATE] = State.DAMAGED
        mark_unreadable(store)
    _find_next_segment(store)
    if not cut.is_intact:
        # What was said on the disk holds, whatever the page says.
        numbers[CutCounter.STATE] = State.DAMAGED if cut.is_unreadable else State.OVERFLOWED
        numbers[CutCounter.UNREADABLE] = int(cut.is_unreadable)


def _find_next_segment(store: Store) -> None:
    """After a power loss, or damage, the number may be behind what is there, or none that could be."""
    control, unused = store.control, first_unused(store.cut.segments.directory)
    noted = control[Counter.NEXT_SEGMENT]
    control[Counter.NEXT_SEGMENT] = unused if noted > MAX_SEGMENT_NO else max(noted, unused)


def _broken_maps(store: Store, seal: Seal | None) -> set[str]:
    broken, cut = set(broken_maps(store, seal)) if seal else set(), store.cut
    if free_is_noted(cut):
        return broken if free_is_proven(cut) else broken | {"free"}
    # Whoever was making the map did not finish it, and settled nothing because of it.
    if cut.free.count():
        cut.free.file.clear()
    return broken


def _mend(store: Store, end: End, broken: set[str], staged: dict[int, int]) -> list[str]:
    power_lost = end is End.POWER_LOST
    preserved = store.cut.numbers[CutCounter.PRESERVED_BLOCKS]
    maps = map_files(store)
    for name in broken - {SEGMENTS_NAME}:
        maps[name].clear()
    give_up(store)
    if power_lost:
        distrust_index(store)
    # What is left of the map of free blocks is known, and counts from here on.
    store.cut.numbers[CutCounter.FREE_BLOCKS] = store.cut.free.count()
    lost_blocks = drop_doubtful(store, staged, settled_is_known="settled" not in broken)
    if power_lost or lost_blocks or INDEX_NAME in broken or _count_lost(store):
        mend_index(store, staged, settled_is_known="settled" not in broken)
    settle_preserved(store)
    if power_lost or "changed" in broken:
        # After a kill the bits of a map that has lost them are as good in the other.
        assume_changed(store, touched_is_known=TOUCHED_NAME not in broken)
    touch_changed(store)
    named = ", ".join(sorted(broken))
    if not power_lost and _may_pass_for_owed(store, end, broken, preserved):
        mark_unreadable(store)
        return [f"the snapshot cannot be read any more: the store is damaged ({named})"]
    numbers = store.cut.numbers
    lost_blocks = numbers[CutCounter.LOST_BLOCKS] = _count_lost(store)
    numbers[CutCounter.EXCUSED_BLOCKS] = numbers[CutCounter.SPOILT_BLOCKS] = 0
    if lost_blocks or not broken or power_lost:
        return []  # after a power loss, maps are as old as the disk left them
    return [f"the store was damaged ({named}) and has been made whole again"]


def _count_lost(store: Store) -> int:
    """Asked when everything that has an entry is settled."""
    return count_lost(store.cut, 0, store.geometry.block_count)


def _may_pass_for_owed(store: Store, end: End, broken: set[str], preserved: int) -> bool:
    """Whether a block that was overwritten may be neither settled nor known as preserved, free or released."""
    if "settled" not in broken:
        return False
    if broken & {"free", "released"}:
        return True
    return INDEX_NAME in broken and (end is End.KILLED or store.cut.index.count() != preserved)
