"""Finding things in an NTFS volume: geometry, MFT records, their attributes, the clusters of a file.

Rules
1. A record is believed only with its mark, its update sequence intact in every 512 bytes, in use and
   a base record: a torn write or a reused record never passes.
2. Runs are clusters inside the volume, without holes, and as many as their attribute says.
3. `open_mft` reaches as far as the part of $MFT's run list that stands in record 0. The system files are in it
   on every volume; what is behind it is `ntfs_mft`'s.

Layout and its sources: `ntfs_layout`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from snapfs.usedmap import ntfs_layout as layout
from snapfs.usedmap.ntfs_runs import runs_one_by_one
from snapfs.usedmap.result import MapError
from snapfs.usedmap.source import Source


class Run(NamedTuple):
    """`length` clusters from cluster `start` on."""

    start: int
    length: int


class RecordHeader(NamedTuple):
    """The head of an MFT record, its fields in their order."""

    mark: bytes
    sequence_offset: int
    sequence_count: int
    use_count: int
    first_attribute: int
    flags: int
    used_bytes: int
    allocated_bytes: int
    base: int

    @property
    def in_use(self) -> bool:
        return bool(self.flags & layout.RECORD_IN_USE)


class Attribute(NamedTuple):
    """One attribute of a record, its header included in `body`."""

    type_code: int
    non_resident: bool
    name: str
    flags: int
    body: bytes


@dataclass(frozen=True)
class Stream:
    """The content of a non-resident attribute: its runs and its size."""

    runs: tuple[Run, ...]
    size_bytes: int
    initialised_bytes: int
    allocated_bytes: int


@dataclass(frozen=True)
class Volume:
    """A volume with a plausible boot sector; `mft` is where its records are."""

    source: Source
    cluster_bytes: int
    cluster_count: int
    record_bytes: int
    mft_cluster: int
    mirror_cluster: int

    def record(self, mft: Stream, number: int) -> bytes:
        """MFT record `number`, verified, with its update sequence undone."""
        return checked_record(self.raw_record(mft, number), f"MFT record {number}")

    def raw_record(self, mft: Stream, number: int) -> bytes:
        """MFT record `number` as it is on the disk."""
        return self.read(mft, number * self.record_bytes, self.record_bytes)

    def read(self, stream: Stream, offset: int, length: int) -> bytes:
        """`length` bytes of a stream at `offset`; refused beyond what was ever written to it."""
        if offset + length > stream.initialised_bytes:
            raise MapError("keeps a structure beyond the end of its file")
        return b"".join(self.source.read(at, count) for at, count in self.pieces(stream, offset, length))

    def pieces(self, stream: Stream, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Where `length` bytes of a stream at `offset` are on the volume: (offset, length) each."""
        end = offset + length
        run_offset = 0
        for run in stream.runs:
            if run_offset >= end:
                return
            run_end = run_offset + run.length * self.cluster_bytes
            first, last = max(offset, run_offset), min(end, run_end)
            if first < last:
                yield run.start * self.cluster_bytes + first - run_offset, last - first
            run_offset = run_end
        if run_offset < end:
            raise MapError("keeps a structure beyond the clusters of its file")


def open_volume(source: Source) -> Volume:
    """Geometry from the boot sector, every field within what NTFS allows and inside the source."""
    name, sector_bytes, per_cluster, sectors, mft_cluster, mirror_cluster, record_code, mark = layout.BOOT.unpack(
        source.read(0, layout.BOOT.size)
    )
    if name != layout.BOOT_NAME or mark != layout.BOOT_MARK:
        raise MapError("has no valid boot sector")
    low, high = layout.SECTOR_BYTES_RANGE
    if not _is_power(sector_bytes) or not low <= sector_bytes <= high:
        raise MapError(f"has sectors of {sector_bytes} bytes")
    # 1 to 128 sectors, larger clusters as a negative power of two.
    sectors_per_cluster = per_cluster if per_cluster <= 128 else 1 << (256 - per_cluster)
    cluster_bytes = sector_bytes * sectors_per_cluster
    if not _is_power(cluster_bytes) or cluster_bytes > layout.CLUSTER_BYTES_MAX:
        raise MapError(f"has clusters of {cluster_bytes} bytes")
    if sectors * sector_bytes > source.size_bytes:
        raise MapError("is larger than its place")
    record_bytes = record_code * cluster_bytes if record_code > 0 else 1 << -record_code
    low, high = layout.RECORD_BYTES_RANGE
    if not _is_power(record_bytes) or not low <= record_bytes <= high:
        raise MapError(f"has MFT records of {record_bytes} bytes")
    cluster_count = sectors // sectors_per_cluster
    if not (0 < mft_cluster < cluster_count and 0 < mirror_cluster < cluster_count):
        raise MapError("has its MFT outside the volume")
    return Volume(source, cluster_bytes, cluster_count, record_bytes, mft_cluster, mirror_cluster)


def open_mft(volume: Volume) -> Stream:
    """The file of MFT records, as far as record 0 describes it."""
    raw = volume.source.read(volume.mft_cluster * volume.cluster_bytes, volume.record_bytes)
    mft = data_stream(volume, checked_record(raw, "MFT record 0"), partial=True)
    if mft.runs[0].start != volume.mft_cluster:
        raise MapError("has an MFT that is not where its boot sector says")
    return mft


def checked_record(raw: bytes, what: str) -> bytes:
    """A record that is in use and a base record, with its update sequence undone."""
    record = whole_record(raw, what)
    header = RecordHeader(*layout.RECORD.unpack_from(record))
    if not header.in_use or header.base & layout.FILE_NO_MASK:
        raise MapError(f"has a {what} that is not in use")
    return record


def whole_record(raw: bytes, what: str) -> bytes:
    """A record of the right shape, in use or not, with its update sequence undone."""
    header = RecordHeader(*layout.RECORD.unpack_from(raw))
    if header.mark != layout.RECORD_MARK:
        raise MapError(f"has no valid {what}")
    if header.allocated_bytes != len(raw) or not layout.RECORD.size < header.used_bytes <= len(raw):
        raise MapError(f"has a {what} of a wrong size")
    return undo_sequence(raw, header.sequence_offset, header.sequence_count, what)


def undo_sequence(raw: bytes, offset: int, count: int, what: str) -> bytes:
    """Put back the two bytes that the update sequence replaced at the end of every 512."""
    stride = layout.SEQUENCE_STRIDE_BYTES
    if count != len(raw) // stride + 1 or offset % 2 or offset + 2 * count > stride - 2:
        raise MapError(f"has a {what} with a wrong update sequence")
    restored = bytearray(raw)
    for index in range(1, count):
        end = index * stride
        if raw[end - 2 : end] != raw[offset : offset + 2]:
            raise MapError(f"has a {what} that was written only in part")
        restored[end - 2 : end] = raw[offset + 2 * index : offset + 2 * index + 2]
    return bytes(restored)


def record_used(record: bytes) -> bytes:
    """The bytes of a verified record that count."""
    return record[: RecordHeader(*layout.RECORD.unpack_from(record)).used_bytes]


def attributes(record: bytes) -> Iterator[Attribute]:
    """Attributes of a verified record in their order; a list without an end is refused."""
    used = record_used(record)
    at = RecordHeader(*layout.RECORD.unpack_from(used)).first_attribute
    while at + 4 <= len(used):
        if int.from_bytes(used[at : at + 4], "little") == layout.ATTRIBUTES_END:
            return
        if at + layout.ATTRIBUTE.size > len(used):
            break
        type_code, length, non_resident, name_length, name_offset, flags = layout.ATTRIBUTE.unpack_from(used, at)
        if length < 24 or length % 8 or at + length > len(used) or non_resident > 1:
            break
        body = used[at : at + length]
        name = body[name_offset : name_offset + 2 * name_length].decode("utf-16-le", "replace")
        yield Attribute(type_code, bool(non_resident), name, flags, body)
        at += length
    raise MapError("has an MFT record with a broken list of attributes")


def find_attribute(record: bytes, type_code: int, name: str = "") -> Attribute | None:
    """The only attribute of that type and name, or None."""
    found = [item for item in attributes(record) if item.type_code == type_code and item.name == name]
    if len(found) > 1:
        raise MapError("has an MFT record that holds an attribute twice")
    return found[0] if found else None


def resident_value(attribute: Attribute) -> bytes:
    """The value of a resident attribute."""
    if attribute.non_resident:
        raise MapError("keeps an attribute outside the MFT that belongs inside")
    length, offset = layout.RESIDENT.unpack_from(attribute.body)
    if offset + length > len(attribute.body):
        raise MapError("has an attribute longer than its record")
    return attribute.body[offset : offset + length]


def data_stream(volume: Volume, record: bytes, *, partial: bool = False) -> Stream:
    """The unnamed $DATA of a record; `partial` if more of its runs may stand in other records."""
    attribute = find_attribute(record, layout.DATA)
    if attribute is None:
        raise MapError("keeps a system file in a form that is not supported")
    return stream_of(volume, attribute, partial=partial)


def stream_of(volume: Volume, attribute: Attribute, *, partial: bool = False) -> Stream:
    """Runs and sizes of a non-resident attribute that begins in this record."""
    if not attribute.non_resident or len(attribute.body) < layout.NON_RESIDENT.size:
        raise MapError("keeps a system file inside the MFT that belongs outside")
    if attribute.flags & layout.COMPRESSED_ENCRYPTED_SPARSE:
        raise MapError("has a system file that is compressed, encrypted or sparse")
    _, last, _, allocated, size, initialised = layout.NON_RESIDENT.unpack_from(attribute.body)
    first, runs = runs_of(volume, attribute)
    clusters = sum(run.length for run in runs)
    if first or not runs or clusters != last + 1 or not initialised <= size <= allocated:
        raise MapError("has a system file whose sizes contradict each other")
    if not partial and clusters * volume.cluster_bytes != allocated:
        raise MapError("has a system file that is spread over several MFT records, which is not supported")
    return Stream(tuple(runs), size, initialised, allocated)


def runs_of(volume: Volume, attribute: Attribute) -> tuple[int, list[Run]]:
    """Which cluster of its file a non-resident attribute without holes goes on with, and its runs."""
    if not attribute.non_resident or len(attribute.body) < layout.NON_RESIDENT.size:
        raise MapError("keeps a system file inside the MFT that belongs outside")
    first, _, runs_offset, _, _, _ = layout.NON_RESIDENT.unpack_from(attribute.body)
    runs = []
    clusters = 0
    for start, length in runs_one_by_one(attribute.body[runs_offset:], volume.cluster_count):
        clusters += length
        if start is None:
            raise MapError("has a system file with a hole")
        if clusters > volume.cluster_count:
            # Runs that overlap could make a file of any size, and reading it take any time.
            raise MapError("has a system file larger than the volume")
        runs.append(Run(start, length))
    return first, runs


def _is_power(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0
