"""scripts/bench works; how fast anything is, is not asked here."""

import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_bench(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts/bench"), "--quick", "--out", str(out), "--dir", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300, check=False)


def leftovers(folder: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text(errors="surrogateescape").splitlines()
    lines += subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if str(folder) in line] + [str(path) for path in folder.glob("snapfs-bench*")]


def test_quick_bench_measures_snapfs_and_its_peers(tmp_path: Path) -> None:
    rows = ("seq-burst", "rand-qd16", "fsync-p50", "memory")
    done = run_bench(tmp_path, *(word for row in rows for word in ("--only", row)))
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert not [line for line in result["voided"] if "snapfs:" in line]
    assert set(result["rows"]) == set(rows)
    assert set(result["rows"]["rand-qd16"]["peers"]) == {"snapfs", "qemu", "xfs", "btrfs"}, result["voided"]
    assert set(result["rows"]["fsync-p50"]["peers"]) >= {"pyfuse3", "libfuse", "raw"}


def test_quick_bench_draws_a_plot_and_leaves_nothing_else(tmp_path: Path) -> None:
    done = run_bench(tmp_path, "--only", "seq-burst", "--peer", "snapfs", "--peer", "xfs")
    assert done.returncode == 0, done.stdout + done.stderr
    (plot,) = tmp_path.glob("*.png")
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert leftovers(tmp_path) == []


def test_quick_bench_of_backups_compares_imagers_and_the_use_of_release(tmp_path: Path) -> None:
    done = run_bench(tmp_path, "--only", "backup")
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert result["voided"] == []
    assert {name: set(row["peers"]) for name, row in result["rows"].items()} == {
        "backup-raw": {"snapfs", "dd", "qemu", "partclone"},
        "backup-qcow2": {"snapfs", "qemu"},
        "backup-size": {"snapfs"},
        "backup-release": {"snapfs", "unreleased"},
        "backup-release-end": {"snapfs", "unreleased"},
    }
    assert leftovers(tmp_path) == []


def test_quick_bench_of_chains_has_a_figure_for_every_row(tmp_path: Path) -> None:
    done = run_bench(tmp_path, "--only", "chain", "--peer", "snapfs", "--peer", "qemu")
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert result["voided"] == []
    peers = {name: set(row["peers"]) for name, row in result["rows"].items()}
    assert peers.pop("chain-memory") == {"snapfs"}
    assert peers.pop("chain-delete-ms") == {"snapfs", "qemu"}
    assert peers.pop("chain-read-oldest") == {"snapfs", "qemu", "newest"}
    assert all(found == {"snapfs", "qemu", "one"} for found in peers.values())
    assert len(peers) == 5
    assert leftovers(tmp_path) == []


def test_quick_bench_of_nights_times_the_second_backup(tmp_path: Path) -> None:
    names = ("snapfs", "qemu", "partclone")
    done = run_bench(tmp_path, "--only", "increment", *(word for name in names for word in ("--peer", name)))
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert result["voided"] == []
    assert set(result["rows"]["increment"]["peers"]) == set(names)
    assert leftovers(tmp_path) == []


def test_quick_bench_of_holes_copies_a_snapshot_and_a_file_with_holes(tmp_path: Path) -> None:
    done = run_bench(tmp_path, "--only", "holes-cp", "--only", "holes-cp-size")
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert result["voided"] == []
    assert {name: set(row["peers"]) for name, row in result["rows"].items()} == {
        "holes-cp": {"snapfs", "raw"},
        "holes-cp-size": {"snapfs", "raw"},
    }
    assert leftovers(tmp_path) == []
