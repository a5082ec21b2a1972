"""scripts/bench: the same work on snapfs and on each peer, alternately, in one run."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console

from bench.backup import BackupBench
from bench.chain import ChainBench
from bench.holes import HolesBench
from bench.image import Master, make_master
from bench.measure import wrong_bytes
from bench.nights import NightsBench
from bench.peers.base import Peer, PeerError
from bench.peers.libfuse import Libfuse
from bench.peers.pyfuse3 import Pyfuse3
from bench.peers.qemu import Qemu
from bench.peers.raw import Raw
from bench.peers.reflink import Btrfs, Xfs
from bench.peers.snapfs import Snapfs
from bench.plot import write_plot
from bench.processes import MemoryPeak
from bench.report import print_report
from bench.results import Peak, Results
from bench.rows import (
    MOUNT_ROWS,
    PEER_NAMES,
    ROWS_BY_NAME,
    SECTIONS,
    SNAPFS,
    Row,
    chosen_rows,
)
from bench.section import Section
from bench.work import FULL, GROUPS, PEAK_ROW, QUICK, Group, Session, Sizes

PEERS: tuple[type[Peer], ...] = (Snapfs, Qemu, Xfs, Btrfs, Pyfuse3, Libfuse, Raw)
MAKERS: dict[str, type[Section]] = {
    "backup": BackupBench, "chain": ChainBench, "nights": NightsBench, "holes": HolesBench,
}  # fmt: skip
RESULTS = Path(__file__).with_name("results")


class Bench:
    """Peers that were asked for, and what has been measured so far."""

    def __init__(self, master: Master, sizes: Sizes, wanted: set[str], results: Results, console: Console) -> None:
        self.master = master
        self.sizes = sizes
        self.wanted = wanted
        self.results = results
        self.console = console

    def run_rounds(self, peers: list[Peer]) -> None:
        for round_no in range(self.results.rounds):
            # Who comes first changes, so that no peer always finds the machine as the same other one left it.
            turn = round_no % len(peers)
            for group in GROUPS:
                concerned = group.peers(self.wanted)
                for peer in [*peers[turn:], *peers[:turn]]:
                    if peer.name in concerned:
                        self.run_group(peer, group, round_no)

    def run_group(self, peer: Peer, group: Group, round_no: int) -> None:
        rows = [row for row in group.rows if row in self.wanted and peer.name in ROWS_BY_NAME[row].peers]
        where = f"round {round_no + 1}, {peer.name}: {', '.join(rows)}"
        self.console.print(f"[dim]{where}[/dim]", highlight=False)
        session = Session(peer, self.master, self.sizes, self.wanted)
        try:
            peer.start()
            # What the peers before left dirty would be written to the disk during this one's rows.
            os.sync()
            with MemoryPeak(peer.pids) as memory:
                group.work(session)
            wrong = self.verify(peer)
        except (OSError, RuntimeError, ValueError, PeerError) as error:
            self.results.voided.append(f"{where}: {error}")
            return
        finally:
            peer.stop()
        if wrong:
            self.results.voided.append(f"{where}: {wrong:,} bytes of the snapshot are wrong, so the figures are void")
            return
        self.keep(session)
        self.keep_peak(session, memory, where)

    def verify(self, peer: Peer) -> int:
        if peer.snapshot is None:
            return 0
        return wrong_bytes(self.master, peer.snapshot, peer.read_bytes, direct=peer.read_direct)

    def keep(self, session: Session) -> None:
        name = session.peer.name
        for row, value in session.values.items():
            self.results.values[row][name].append(value)
        for row, value in session.cpu_seconds_per_gib.items():
            self.results.cpu_seconds_per_gib[row][name].append(value)

    def keep_peak(self, session: Session, memory: MemoryPeak, where: str) -> None:
        if not session.wants(PEAK_ROW):
            return
        peaks = self.results.values[PEAK_ROW][session.peer.name]
        peak_mib = memory.peak_bytes / (1 << 20)
        if peak_mib > max(peaks, default=0):
            peaks[:] = [peak_mib]
            self.results.peak_parts[session.peer.name] = Peak(where, memory.parts)


def ignore_signals() -> None:
    # A second Ctrl-C in the midst of unmounting would leave the rest mounted.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def concerns(rows: tuple[Row, ...], wanted: set[str]) -> bool:
    return any(row.name in wanted for row in rows)


def run_mounts(
    scratch: Path, sizes: Sizes, wanted: set[str], names: tuple[str, ...], results: Results, console: Console
) -> None:
    with ExitStack() as stack:
        # Gone before the next section: its images would need as much space again.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mount.", dir=scratch)))
        master = make_master(folder, sizes.image_bytes, sizes.data_bytes, sizes.free_bytes)
        peers = [make(folder / make.name, master) for make in PEERS if not names or make.name in names]
        for peer in peers:
            stack.callback(peer.close)
        stack.callback(ignore_signals)
        Bench(master, sizes, wanted, results, console).run_rounds(peers)


@click.command()
@click.option("--quick", is_flag=True, help="One round of everything in small: does it work, roughly how fast.")
@click.option(
    "--only",
    multiple=True,
    metavar="ROW",
    type=click.Choice([*SECTIONS, *ROWS_BY_NAME]),
    help="Only this row, or all of mount, backup, chain, nights or holes (again for more).",
)
@click.option(
    "--peer", "names", multiple=True, type=click.Choice(PEER_NAMES), help="Only this peer (again for more)."
)
@click.option("--rounds", type=click.IntRange(1), help="How often everything is done (default 3, --quick 1).")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/var/tmp"),
    show_default=True,
    help="Where the images are made; 12 GiB (nights 40), on a filesystem with O_DIRECT.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, help="Where the results go."
)
def main(
    quick: bool, only: tuple[str, ...], names: tuple[str, ...], rounds: int | None, folder: Path, out: Path
) -> None:
    """Measure snapfs beside QEMU's copy-before-write, reflink copies, plain FUSE servers, the raw file and imagers.

    The rows are explained in bench/rows.py.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    now = datetime.now(UTC)
    results = Results(now.strftime("%Y-%m-%dT%H:%M:%SZ"), rounds or (1 if quick else 3), quick)
    sizes = QUICK if quick else FULL
    wanted = chosen_rows(only)
    console = Console(width=None if sys.stdout.isatty() else 120)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="snapfs-bench.", dir=folder)))
        console.print(f"[dim]making images of {sizes.image_bytes >> 20} MiB in {scratch}[/dim]", highlight=False)
        stack.callback(ignore_signals)
        if concerns(MOUNT_ROWS, wanted):
            run_mounts(scratch, sizes, wanted, names, results, console)
        for name, make in MAKERS.items():
            if concerns(make.rows, wanted):
                make(scratch / name, sizes, wanted, names, results, console).run()
    print_report(results, console)
    out.mkdir(parents=True, exist_ok=True)
    stem = f"{now:%Y-%m-%d-%H%M%S}{'-quick' if quick else ''}"
    results.write(out / f"{stem}.json")
    write_plot(results, out / f"{stem}.png")
    console.print(f"Results and plot: {out / stem}.*", highlight=False)
    if any(f" {SNAPFS}: " in line for line in results.voided):
        sys.exit(1)


if __name__ == "__main__":
    main()
