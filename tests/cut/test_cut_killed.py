"""kill -9 of any process at any step of a cut: nothing stays frozen, the snapshot is the old one or the new one, and
right, live data are whole, and the next cut is taken.

    prepare-cut+   the new cut is prepared
    cut            everything is frozen
    cut+           the cut is taken, and everything is frozen still
    cut-facts      everything is thawed
    cut-facts+     the snapshot view shows the cut, and its map is being computed
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path

import pytest
from cut_rig import MIB, SNAPFS, CutGround, cut, finished, is_frozen, run
from mounted import Process, find_processes, wait_until

STEPS = ["prepare-cut+", "cut", "cut+", "cut-facts", "cut-facts+"]
# Where the supervisor dies, which ends the others in order.
ENDING_STEPS = ["prepare-cut+", "cut", "cut+", "cut-facts"]
# Where a server kills itself: at what it is about to do, or has just done.
LIVE_STEPS = [
    ("before", "mkdir", "/cut-"),
    ("before", "rename", "/header.new"),
    ("after", "rename", "/header.new"),
    ("before", "rename", "/facts.json"),
    ("before", "unlink", "free.found"),
]
VIEW_STEPS = [("before", "open", "/settled"), ("after", "open", "/index")]
EXPECTED_LOG = (
    "was killed by signal 9|still in use|goes on alone|the map of used blocks failed|cannot be unmounted|"
    "what was written to the live view may not be in the image|could not be written"
)
DATA = os.urandom(MIB)


class Scene:
    """An ext4 on the live view, whose first snapshot is from before there was anything in it."""

    def __init__(self, ground: CutGround, *dying: str) -> None:
        self.ground = ground
        image = ground.made("ext4", 16 * MIB)
        self.old = image.read_bytes()
        self.instance = ground.instance(image)
        self.instance.expect_log(EXPECTED_LOG)
        self.armed = ground.path / "armed"
        if dying:
            program = Path(__file__).with_name("dying_server.py")
            self.instance.program = (sys.executable, program, self.armed, *dying)
        self.instance.mount()
        wait_until(lambda: self.instance.status()["snapshot"]["map"] == "ready")
        # The files in the filesystem, and those in the present snapshot.
        self.names: list[str] = []
        self.shown: list[str] = []
        self.present_id = self.snapshot_id
        self.appear()
        self.write()

    @property
    def live(self) -> Path:
        return self.instance.live

    @property
    def snapshot_id(self) -> str:
        return str(self.instance.status()["snapshot"]["id"])

    def write(self) -> None:
        """One more file, which tells the present snapshot from the next one."""
        self.names.append(f"file-{len(self.names)}")
        with (self.point / self.names[-1]).open("wb") as file:
            file.write(DATA)
            os.fsync(file.fileno())

    def appear(self) -> None:
        """The filesystem is mounted."""
        self.point = self.ground.filesystem(self.instance)

    def disappear(self) -> None:
        """The filesystem is unmounted, also where nothing of it can be written any more."""
        device = run("findmnt", "-n", "-o", "SOURCE", self.point).strip()
        run("umount", self.point)
        self.ground.drop_loop(Path(device))

    def adopt(self, name: str) -> None:
        """The one that takes the place of a server that was killed."""
        self.instance.processes[name].await_end()
        self.instance.processes.pop(name).close()
        wait_until(lambda: name in self._found(), what=f"another {name}")
        self.instance.processes[name] = self._found()[name]
        wait_until(lambda: self.instance.status()["error"] is None, what="a view that is shown again")

    def _found(self) -> dict[str, Process]:
        try:
            return find_processes(self.instance.processes["supervisor"].pid)
        except OSError:  # one of them ended meanwhile
            return {}

    # --- what must be right ----------------------------------------------------------------------------------

    def check_thawed(self) -> None:
        def thawed() -> bool:
            try:
                return not is_frozen(self.point)
            except OSError as error:
                # Its device is dead.
                return error.errno in (errno.EIO, errno.EROFS)

        wait_until(thawed, 5.0, "the thaw")

    def check_snapshot(self, *, is_new: bool | None = None) -> None:
        """It is the one or the other, whole."""
        found, self.present_id = self.snapshot_id != self.present_id, self.snapshot_id
        assert is_new in (None, found)
        if found:
            self.shown = list(self.names)
        if self.shown:
            check_files(self.instance.snap_file, self.shown, {*self.names} - {*self.shown})
        else:
            assert self.instance.snap_file.read_bytes() == self.old
        wait_until(lambda: len(list(self.instance.store.glob("cut-*"))) == 1, what="the end of the other cut")

    def check_next_cut(self) -> None:
        self.write()
        assert cut(self.live)["frozen"] == [str(self.point)]
        self.check_snapshot(is_new=True)

    def check_end(self) -> None:
        self.disappear()
        self.instance.umount()
        assert not self.instance.store.exists()
        check_files(self.instance.image, self.names)

    def check_completed(self, code: int, err: str) -> None:
        """The cut was taken although a server died that is started again."""
        assert (code, err) == (0, "")
        self.check_thawed()
        self.check_snapshot(is_new=True)

    def check_carried_on(self, code: int, err: str) -> None:
        """The cut failed or was taken, and the instance has ended; the next one has all that was written."""
        assert code in (0, 1, 4), err
        # What a system call says is no account of it.
        assert "Traceback" not in err
        assert os.strerror(errno.ENOTCONN) not in err
        assert not err or err.startswith("snapfs: "), err
        self.check_thawed()
        for process in self.instance.processes.values():
            process.await_end()
        self.disappear()
        # Its log is replayed in a copy, for that would be a change.
        copy = self.ground.image(self.instance.image.read_bytes(), "copy")
        run("sh", "-c", 'e2fsck -fy "$0" || [ $? = 1 ]', copy)
        check_files(copy, self.names)
        assert "Carrying on with the same snapshot." in self.instance.mount().stdout
        self.check_snapshot()
        self.appear()
        self.check_next_cut()
        self.check_end()


def check_files(disk: Path, names: list[str], others: AbstractSet[str] = frozenset()) -> None:
    """An ext4 without a log to replay and without a fault, with files of these names in it and none of the others."""
    run("e2fsck", "-fn", disk)
    assert others.isdisjoint(run("debugfs", "-R", "ls /", disk).split())
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        for name in names:
            found = Path(directory) / name
            run("debugfs", "-R", f"dump /{name} {found}", disk)
            assert found.read_bytes() == DATA


MakeScene = Callable[..., Scene]


@pytest.fixture
def scene(ground: CutGround) -> MakeScene:
    return lambda *dying: Scene(ground, *dying)


def test_the_command_at_every_step(scene: MakeScene, ground: CutGround) -> None:
    here = scene()
    for step in STEPS:
        process = ground.stopping_cut(here.live, at=step)
        process.kill()
        here.check_thawed()
        here.check_snapshot(is_new=step not in ("prepare-cut+", "cut"))
        here.write()
    here.check_next_cut()
    here.check_end()


@pytest.mark.parametrize("victim", ["compactor", "snapshot"])
def test_a_server_that_is_started_again_at_every_step(scene: MakeScene, ground: CutGround, victim: str) -> None:
    here = scene()
    for step in STEPS:
        process = ground.stopping_cut(here.live, at=step)
        here.instance.kill(victim)
        code, _, err = finished(process, "\n")
        here.adopt(victim)
        here.check_completed(code, err)
        here.write()
    here.check_end()


@pytest.mark.parametrize("step", VIEW_STEPS, ids=" ".join)
def test_the_snapshot_server_while_it_follows(scene: MakeScene, ground: CutGround, step: tuple[str, ...]) -> None:
    here = scene("snapshot", *step)
    here.armed.touch()
    code, _, err = finished(ground.started(SNAPFS, "snapshot", here.live, "-q"))
    here.adopt("snapshot")
    here.check_completed(code, err)
    here.check_end()


@pytest.mark.parametrize("step", ENDING_STEPS)
def test_the_supervisor(scene: MakeScene, ground: CutGround, step: str) -> None:
    here = scene()
    process = ground.stopping_cut(here.live, at=step)
    here.instance.kill("supervisor")
    code, _, err = finished(process, "\n")
    here.check_carried_on(code, err)


@pytest.mark.parametrize("step", LIVE_STEPS, ids=" ".join)
def test_the_live_server(scene: MakeScene, ground: CutGround, step: tuple[str, ...]) -> None:
    here = scene("live", *step)
    here.armed.touch()
    code, _, err = finished(ground.started(SNAPFS, "snapshot", here.live))
    wait_until(lambda: not here.armed.exists(), what="the death")
    here.check_carried_on(code, err)


@pytest.mark.parametrize("step", ["prepare-cut+", "cut+"])
def test_a_command_whose_servers_have_died_says_so(ground: CutGround, step: str) -> None:
    instance = ground.mounted(ground.image(MIB))
    instance.expect_log(EXPECTED_LOG)
    process = ground.stopping_cut(instance.live, at=step)
    instance.kill("live")
    instance.await_end()
    code, out, err = finished(process, "\n")
    wanted = "ended while a cut was taken; mount the image again, and snapfs status says which snapshot it has.\n"
    assert (code, out) == (1, "")
    assert err == f"snapfs: The snapfs on {instance.store} {wanted}"
