"""The map campaign: does a reader of maps ever call free what is used, whatever happened to its bitmaps and tables?

A round takes one filesystem of each family with random options, proves its undamaged map by overwriting all that it
calls free, then damages what its reader reads, again and again, and compares: what the map of a damaged filesystem
calls free must be free in the undamaged one. If it is not, the filesystem's own repair decides: it is a fault unless
overwriting those blocks costs no file that the repair would have saved. A round of `disks` does the same with
partition tables and leftovers of older formats. Every line printed names what it takes to see
it again:

    scripts/torture maps --seed S --first-round R --rounds 1 --only FAMILY
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from disk_images import SECTOR
from foreign_images import frees_only
from map_damage import Patient
from map_layouts import check_disk, damage_places, make_disk, map_in_spite_of_damage
from map_layouts import loses_files as loses_files_of_disk
from map_subjects import FAMILIES, Subject, loses_files, make_subject

from snapfs.usedmap.fat_geometry import read_geometry
from snapfs.usedmap.result import FreeMap, MapError

DISKS = "disks"
EVERYTHING = (*FAMILIES, DISKS)
SLOW_S = 10

Say = Callable[[str], None]


@dataclass
class Tally:
    """What became of the damages of one family."""

    damages: int = 0
    refused: int = 0
    trusted: int = 0
    faults: list[str] = field(default_factory=list)
    lost_anyway: int = 0
    not_run: int = 0

    def add(self, other: Tally) -> None:
        self.damages += other.damages
        self.refused += other.refused
        self.trusted += other.trusted
        self.faults += other.faults
        self.lost_anyway += other.lost_anyway
        self.not_run += other.not_run

    def __str__(self) -> str:
        counts = f"{self.damages} damages, {self.refused} refused, {self.trusted} trusted, {len(self.faults)} FAULTS"
        if self.lost_anyway:
            counts += f", {self.lost_anyway} that cost no file that was left"
        return f"{counts}, {self.not_run} rounds NOT RUN" if self.not_run else counts


def run_round(name: str, seed: int, round_no: int, damages: int, work: Path) -> tuple[str, Tally]:
    """One family, one round; what it was and what became of it."""
    dice = random.Random(f"{seed}/{round_no}/{name}")
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=work))
    try:
        return (run_disk if name == DISKS else run_filesystem)(name, dice, damages, folder)
    finally:
        shutil.rmtree(folder)


def run_filesystem(name: str, dice: random.Random, damages: int, work: Path) -> tuple[str, Tally]:
    subject = make_subject(name, dice, work)
    patient = Patient(subject.image, subject.older, mirrors(subject))
    places = patient.listen(subject.family.reader)
    tally = Tally(damages)
    for number in range(damages):
        changes = patient.damage(places, random.Random(dice.randrange(1 << 62)))
        with patient.damaged(changes):
            freed = judge(subject, patient, number, tally)
        if freed is not None:
            if loses_files(subject, changes, freed, work):
                tally.faults.append(f"damage {number}: used blocks are called free")
            else:
                tally.lost_anyway += 1
        if tally.faults and tally.faults[-1].startswith(f"damage {number}:"):
            tally.faults[-1] += f"; changed: {[(offset, len(content)) for offset, content in changes]}"
    return subject.options, tally


def judge(subject: Subject, patient: Patient, number: int, tally: Tally) -> FreeMap | None:
    """Read the damaged filesystem and note what came of it; the map if it calls free what was used."""
    start = time.monotonic()
    free_map = None
    try:
        free_map = subject.family.reader(patient.source())
    except MapError:
        tally.refused += 1
    except Exception as error:  # costs space only, but a reader knows what it refuses
        tally.refused += 1
        tally.faults.append(f"damage {number}: {type(error).__name__}: {error}")
    else:
        tally.trusted += 1
    if time.monotonic() - start > SLOW_S:
        tally.faults.append(f"damage {number}: took longer than {SLOW_S} s")
    return None if free_map is None or is_harmless(free_map, subject.truth) else free_map


def is_harmless(free_map: FreeMap, truth: FreeMap) -> bool:
    same_units = (free_map.unit_bytes, free_map.data_offset) == (truth.unit_bytes, truth.data_offset)
    if same_units and len(free_map.free) == len(truth.free):
        return not (free_map.free & ~truth.free).any()
    return frees_only(free_map, truth)


def mirrors(subject: Subject) -> tuple[int, ...]:
    """The FATs: a driver writes the same into all of them, also when it is wrong."""
    if subject.family.kind != "vfat":
        return ()
    offsets = read_geometry(Patient(subject.image).source()).fat_offsets
    return offsets if len(offsets) > 1 else ()


def run_disk(_: str, dice: random.Random, damages: int, work: Path) -> tuple[str, Tally]:
    disk = make_disk(dice, work)
    tally = Tally(damages, faults=check_disk(disk, work))
    places, patient = damage_places(disk), Patient(disk.image)
    for number in range(damages):
        changes = patient.damage(places, random.Random(dice.randrange(1 << 62)))
        damaged_map = map_in_spite_of_damage(disk, changes)
        is_refused = damaged_map.used.all()
        tally.refused += is_refused
        tally.trusted += not is_refused
        lost_bytes = (~damaged_map.used & disk.image_map.used).count() * SECTOR
        if lost_bytes and loses_files_of_disk(disk, changes, damaged_map, work):
            where = [(offset, len(content)) for offset, content in changes]
            tally.faults.append(f"damage {number}: {lost_bytes} used bytes are called free; changed: {where}")
        else:
            tally.lost_anyway += lost_bytes > 0
    return disk.description, tally


def run_campaign(seed: int, rounds: range, damages: int, names: list[str], work: Path, say: Say) -> dict[str, Tally]:
    """All rounds; a line for each, and one for each fault."""
    totals = {name: Tally() for name in names}
    for round_no in rounds:
        for name in names:
            try:
                what, tally = run_round(name, seed, round_no, damages, work)
            except (AssertionError, OSError) as error:  # a tool failed: the others go on
                what, tally = f"{type(error).__name__}: {error}", Tally(not_run=1)
            totals[name].add(tally)
            say(f"seed {seed} round {round_no} {name} ({what}): {tally}")
            for fault in tally.faults:
                say(f"  FAULT {fault}")
    return totals


def main(arguments: list[str]) -> int:
    """The command `scripts/torture maps`; 1 when a used block was called free."""
    parser = argparse.ArgumentParser(prog="scripts/torture maps", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--rounds", type=int, default=1, help="filesystems of each family (default 1)")
    parser.add_argument("--first-round", type=int, default=0)
    parser.add_argument("--damages", type=int, default=200, help="of each filesystem (default 200)")
    parser.add_argument("--only", default=",".join(EVERYTHING), help=f"some of {','.join(EVERYTHING)}")
    options = parser.parse_args(arguments)
    names = options.only.split(",")
    if unknown := set(names) - set(EVERYTHING):
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    print(f"seed {options.seed}", flush=True)
    rounds = range(options.first_round, options.first_round + options.rounds)
    with tempfile.TemporaryDirectory(prefix="snapfs-torture-") as work:
        totals = run_campaign(
            options.seed, rounds, options.damages, names, Path(work), lambda line: print(line, flush=True)
        )
    everything = Tally()
    for name, tally in totals.items():
        print(f"{name:14} {tally}")
        everything.add(tally)
    print(f"{'all':14} {everything}")
    return 1 if everything.faults or everything.not_run else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
