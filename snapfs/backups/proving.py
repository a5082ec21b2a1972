"""Which backups of a chain are whole, and which are lost with what is damaged.

Of each backup, alone: its facts and its table are what was written; its file asks for no other file than the one that
is below it, has no errors in its structure, holds exactly the cells of its table, as data or as zeros, and each has
its digest. Then the links: each is of the backup below it. A time is lost when the newest word on any cell of it is
damaged, or when nobody can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from bitarray import bitarray
from bitarray.util import zeros

from snapfs.backups.chain import Chain
from snapfs.backups.facts import Facts
from snapfs.backups.reading import open_alone, open_link
from snapfs.backups.table import Table
from snapfs.errors import BackupDamagedError
from snapfs.imager.extents import CELL_BYTES, Extent, cell_count
from snapfs.imager.hashing import DIGEST_BYTES, CellHasher
from snapfs.imager.progress import Report
from snapfs.imager.qcow2_map import held_by
from snapfs.imager.qemu import Link, check_structure
from snapfs.imager.reader import BackupReader


@dataclass
class Proof:
    """Of some backups: the names of those that are whole, of those that are lost, and what is said of each damage."""

    good: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    damages: list[str] = field(default_factory=list)
    read_bytes: int = 0


@dataclass(frozen=True)
class _Found:
    """What was found of one backup: the cells it holds, and which of these are not what was written."""

    data: bitarray
    zeros: bitarray
    bad: bitarray

    @property
    def held(self) -> bitarray:
        return self.data | self.zeros


def prove(chain: Chain, names: Sequence[str], report: Report) -> Proof:
    """Read the files that these backups need, each once. SnapfsError: a disk or a tool fails."""
    proof = Proof()
    found: dict[str, _Found | None] = {}
    for name in names:
        try:
            links = chain.links(name)
        except BackupDamagedError as error:
            _note(proof, error.sentence)
            proof.lost.append(name)
            continue
        above: _Found | None = None
        for facts in reversed(links):
            if facts.name not in found:
                # What is above one that is going is being written into its file.
                hidden = above.held if facts.is_going and above is not None else None
                found[facts.name] = _of_one(chain, facts, hidden, proof, report)
            above = found[facts.name]
        is_whole = _is_whole([found[facts.name] for facts in links], links[-1].image_bytes)
        (proof.good if is_whole else proof.lost).append(name)
    return proof


def _of_one(chain: Chain, facts: Facts, hidden: bitarray | None, proof: Proof, report: Report) -> _Found | None:
    """None: nothing can be said of any cell of it. What is in `hidden` cells does not matter."""
    names = chain.names(facts.name)
    try:
        table = Table(names.table(facts.merges), facts.image_bytes, facts.maps_blake3)
    except BackupDamagedError as error:
        _note(proof, error.sentence)
        return None
    try:
        data, zero_cells = table.maps()
        table.check_whole(facts.table_blake3)
        with open_link(names.qcow2, facts) as link:
            check_structure(link)
            bad = _badly_held(link, facts, table)
        with open_alone(names.qcow2, facts, table) as reader:
            proof.read_bytes += reader.manifest.data_bytes
            bad |= _badly_read(reader, table, report)
    except BackupDamagedError as error:
        _note(proof, error.sentence)
        return None
    finally:
        table.close()
    if hidden is not None:
        bad &= ~hidden
    if bad.any():
        _note(proof, f"{names.qcow2.name} is damaged: {describe_cells(bad)} is not what was written")
    return _Found(data, zero_cells, bad)


def _badly_held(link: Link, facts: Facts, table: Table) -> bitarray:
    """Cells that the file holds in another way than the table says."""
    held = held_by(link.fd, link.path, facts.image_bytes)
    data, hidden = table.maps()
    return (held.data ^ data) | (held.zeros ^ hidden)


def _badly_read(reader: BackupReader, table: Table, report: Report) -> bitarray:
    """Cells whose bytes have not their digests; looked at more closely where an extent has not."""
    bad = zeros(cell_count(table.image_bytes), "little")
    damaged: list[int] = []
    reader.run("verify", lambda view, offset: None, damaged.append, report)
    for index in damaged:
        extent = reader.manifest.extents[index].extent
        first = extent.offset // CELL_BYTES
        wanted = table.digests(first, -(-extent.end // CELL_BYTES))
        differs = (_digests_of(reader, extent) != wanted).any(axis=1)
        for number in np.flatnonzero(differs).tolist():
            bad[first + number] = 1
    return bad


def _digests_of(reader: BackupReader, extent: Extent) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    hasher = CellHasher()
    for offset, length in extent.pieces(CELL_BYTES):
        buffer = memoryview(bytearray(length))
        reader.read_into(buffer, offset)
        hasher.update(buffer)
    hasher.digest()
    return np.frombuffer(bytes(hasher.cells), np.uint8).reshape(-1, DIGEST_BYTES)


def _is_whole(found: Sequence[_Found | None], image_bytes: int) -> bool:
    bad = zeros(cell_count(image_bytes), "little")
    for one in found:
        if one is None:
            return False
        bad &= ~one.held
        bad |= one.bad
    return not bad.any()


def describe_cells(cells: bitarray) -> str:
    """How many they are, and where."""
    count = cells.count()
    number = "64 KiB" if count == 1 else f"{count} times 64 KiB, the first"
    return f"{number} at {cells.find(1) * CELL_BYTES} of the image"


def _note(proof: Proof, sentence: str) -> None:
    """Without its way out, and once."""
    sentence = sentence.partition("; ")[0].rstrip(".")
    if sentence not in proof.damages:
        proof.damages.append(sentence)
