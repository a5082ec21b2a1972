"""Backups of a chain, open for reading: what QEMU opens, and in which order, is said by our facts alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from snapfs.backups.chain import Chain
from snapfs.backups.facts import Facts
from snapfs.backups.layout import QCOW2, Names
from snapfs.backups.overlay import Overlay
from snapfs.backups.table import Table, reading
from snapfs.imager.manifest import Manifest
from snapfs.imager.qcow2 import Qcow2Reader
from snapfs.imager.qemu import Link
from snapfs.imager.reader import BackupReader
from snapfs.system.file_kinds import open_readable


def open_table(chain: Chain, link: Facts) -> Table:
    """The table of one backup, to be closed."""
    return Table(chain.names(link.name).table(link.merges), link.image_bytes, link.maps_blake3)


@contextlib.contextmanager
def open_tables(chain: Chain, links: Sequence[Facts], *, whole: bool) -> Iterator[list[Table]]:
    """The tables of backups; with `whole` all of each is compared with its hash."""
    tables: list[Table] = []
    try:
        for link in links:
            tables.append(open_table(chain, link))
            if whole:
                tables[-1].check_whole(link.table_blake3)
        yield tables
    finally:
        for table in tables:
            table.close()


@contextlib.contextmanager
def open_point(chain: Chain, links: Sequence[Facts]) -> Iterator[BackupReader]:
    """The image at the time of the last of these backups, of which each is below the next one."""
    with open_tables(chain, links, whole=True) as tables:
        manifest = Overlay(links[-1].image_bytes, tables).manifest(links[-1].unread)
    manifest = replace(manifest, facts={"regions": links[-1].regions})
    opened = [(chain.names(link.name).qcow2, link) for link in reversed(links)]
    way_out = f"snapfs verify {chain.directory} --all says which backups are whole"
    with _reader(opened, manifest, way_out) as reader:
        yield reader


@contextlib.contextmanager
def open_alone(path: Path, facts: Facts, table: Table) -> Iterator[BackupReader]:
    """What the file of one backup holds, as its table says, and nothing of what is below it."""
    manifest = Overlay(facts.image_bytes, [table]).manifest(facts.unread)
    with _reader([(path, facts)], manifest, "take another copy") as reader:
        yield reader


@contextlib.contextmanager
def open_link(path: Path, facts: Facts) -> Iterator[Link]:
    """The file of one backup, at `path`."""
    with reading(path):
        fd = open_readable(path, "name a directory of backups", flags=os.O_NOFOLLOW)
    try:
        yield Link(fd, path, backing_of(facts))
    finally:
        os.close(fd)


def backing_of(facts: Facts) -> str | None:
    """What its file has to name as below it."""
    return None if facts.base is None else facts.base.name + QCOW2


def qcow2_names(directory: Path, links: Sequence[Facts]) -> list[Path]:
    """The files of these backups."""
    return [Names(directory, link.name).qcow2 for link in links]


@contextlib.contextmanager
def _reader(files: Sequence[tuple[Path, Facts]], manifest: Manifest, way_out: str) -> Iterator[BackupReader]:
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(open_link(path, facts)) for path, facts in files]
        # It closes what it has been given.
        copies = [Link(os.dup(link.fd), link.path, link.backing) for link in links]
        try:
            content = Qcow2Reader(*copies)
        except BaseException:
            for copy in copies:
                os.close(copy.fd)
            raise
        reader = BackupReader(files[0][0], manifest, content, way_out)
        stack.callback(reader.close)
        yield reader
