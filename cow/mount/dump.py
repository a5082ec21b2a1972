"""What is in a store, in readable lines: the header, the numbers, the maps, the records, the seal.

Everything is opened for reading only and no lock is taken, so a store in use can be looked at as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cow.disk.bitmaps import Bitmap
from cow.disk.blocks import Kind, entry_runs
from cow.disk.directory import BITMAP_NAMES, header_of
from cow.disk.files import Files
from cow.disk.header import CutHeader, Header
from cow.disk.layout import SEQ_MASK, unpack_place
from cow.disk.seal import read_seal
from cow.disk.segments import ScanProblem, scan_segment
from cow.disk.store import Store, open_reader


def dump(path: Path, files: Files, max_entries: int | None = 64) -> Iterator[str]:
    """The store in readable lines; `max_entries` bounds the runs, entries and records listed of each kind."""
    header = header_of(path)
    yield from _dump_header(header)
    store = open_reader(path, files)
    try:
        yield from _dump_numbers(store)
        for name, bitmap in zip(BITMAP_NAMES, store.cut.bitmaps, strict=True):
            yield from _bounded(f"{name}:", _bitmap_lines(bitmap), max_entries)
        yield from _bounded("index:", _index_lines(store), max_entries)
        yield from _bounded("records:", _record_lines(store), max_entries)
        yield from _dump_seal(store)
    finally:
        store.close()


def _bounded(title: str, lines: Iterator[str], max_lines: int | None) -> Iterator[str]:
    yield title
    for number, line in enumerate(lines):
        if number == max_lines:
            yield "  ..."
            return
        yield f"  {line}"


def _dump_header(header: Header) -> Iterator[str]:
    yield "header:"
    yield from _fields(header)
    for cut in header.cuts:
        yield f"cut {cut.generation}:"
        yield from _fields(cut)


def _fields(facts: Header | CutHeader) -> Iterator[str]:
    for name in facts.__slots__:
        value = getattr(facts, name)
        if name == "holders":
            value = " ".join(value)
        if value == "" or isinstance(value, tuple):
            continue
        if isinstance(value, bytes):
            value = value.hex()
        yield f"  {name} {getattr(value, 'name', value)}"


def _dump_numbers(store: Store) -> Iterator[str]:
    for page in (store.control, store.cut.numbers):
        yield f"{page.file.path.name}:"
        for name, value in page.by_name().items():
            if value:
                yield f"  {name} {value}"


def _bitmap_lines(bitmap: Bitmap) -> Iterator[str]:
    for first, end in bitmap.set_runs():
        yield f"{first}..{end - 1}"


def _index_lines(store: Store) -> Iterator[str]:
    for first, entries in store.cut.index.filled_runs():
        for kind, low, high, entry in entry_runs(first, entries):
            step = int(kind is Kind.STAGED)
            for block_no in range(low, high) if entry else ():
                yield f"{block_no} {_entry_text(kind, entry + step * (block_no - low))}"


def _entry_text(kind: Kind, entry: int) -> str:
    if kind is Kind.STAGED:
        return f"staged {entry & SEQ_MASK}"
    if kind is Kind.STORED:
        place = unpack_place(entry)
        return f"segment {place.segment_no} offset {place.offset} length {place.length}"
    return "lost" if kind is Kind.LOST else f"unknown {entry:#x}"


def _record_lines(store: Store) -> Iterator[str]:
    for number in store.cut.segments.numbers():
        for found in scan_segment(store.cut.segments, number, store.files, verify=True):
            if isinstance(found, ScanProblem):
                yield f"PROBLEM {found}"
                continue
            place, record = found
            blocks = f"{record.block_no}..{record.block_no + record.block_count - 1}"
            yield (
                f"segment {number} offset {place.offset} blocks {blocks} {record.flag.name.lower()} "
                f"{record.payload_bytes} of {record.raw_bytes} bytes checksum {record.checksum:016x}"
            )


def _dump_seal(store: Store) -> Iterator[str]:
    seal = read_seal(store.path, store.cut.generation)
    if seal is None:
        yield "no seal"
        return
    yield "seal:"
    for name, digest in seal.digests.items():
        yield f"  {name} {digest}"
    for name, number in seal.numbers.items():
        yield f"  {name} {number}"
