"""Every JSON object is as the schema says, and `-q` keeps the text back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from command_line import Bench, run, snapfs

import snapfs as package

SCHEMA = json.loads((Path(package.__file__).parent / "output.schema.json").read_text())


def closed(part: Any) -> Any:
    """A schema in which no object has a key that is not described."""
    if isinstance(part, list):
        return [closed(item) for item in part]
    if not isinstance(part, dict):
        return part
    inner = {key: closed(value) for key, value in part.items()}
    return {**inner, "additionalProperties": False} if "properties" in part and "type" in part else inner


SCHEMA = closed(SCHEMA)


def check(kind: str, found: Any) -> None:
    jsonschema.validate(found, {**SCHEMA, "$ref": f"#/$defs/{kind}"}, cls=jsonschema.Draft202012Validator)


def printed(*words: str | Path) -> Any:
    return json.loads(snapfs(*words, "--json").ok().out)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_what_a_mounted_image_prints(bench: Bench) -> None:
    check("mount", printed("mount", bench.image, bench.live, bench.snap))
    check("status", printed("status", bench.live))
    check("cut", printed("snapshot", bench.live))
    check("map", printed("map", bench.live))
    check("diff", printed("diff", bench.live))
    check("cut", printed("snapshot", bench.live, "--name", "gone"))
    check("cut", printed("snapshot", bench.live, "--name", "kept", "--keep-last", "1"))
    check("cut", printed("snapshot", bench.live))
    check("list", printed("list", bench.live))
    check("revert", printed("revert", bench.live, "kept"))
    check("revert", printed("revert", bench.live, "kept", "--discard", "--force"))
    check("delete", printed("delete", bench.live, "--keep-last", "1", "--dry-run"))
    check("status", printed("status", bench.live, "--snapshot", "kept"))
    check("map", printed("map", bench.live, "--snapshot", "kept"))
    newest = printed("list", bench.live)["snapshots"][-1]["id"]
    check("diff", printed("diff", bench.live, "kept", newest))
    check("backup", printed("backup", bench.live, bench.path / "kept", "--snapshot", "kept"))
    check("join", printed("join", bench.snap / ".chunks" / "newest", bench.path / "joined"))
    check("delete", printed("delete", bench.live, "kept"))
    check("check", printed("check", bench.live))
    check("backup", printed("backup", bench.live, bench.path / "backup"))
    check("backup", printed("backup", "--cut", bench.live, bench.path / "of-a-cut"))
    check("manifest", json.loads((bench.path / "of-a-cut.json").read_text()))
    check("release", printed("release", bench.live, "--all"))
    bench.umount().ok()


def test_what_is_browsed_and_its_end(bench: Bench) -> None:
    part, place = bench.path / "part.img", bench.path / "place"
    place.mkdir()
    run("mkfs.ext4", "-q", part, "4M")
    bench.image.write_bytes(bytes(8 << 20))
    table = "label: gpt\nstart=2048, size=8192\nstart=10240, size=2048\n"
    run("sfdisk", "-q", "--no-reread", "--no-tell-kernel", bench.image, input=table.encode())
    run("dd", f"if={part}", f"of={bench.image}", "bs=1M", "seek=1", "conv=notrunc", "status=none")
    with bench.mounted():
        found = printed("browse", bench.live, place)
        check("browse", found)
        assert (len(found["mounted"]), len(found["not_mounted"])) == (1, 1)
        check("browse_end", printed("browse", "--end", place))
        backups = bench.path / "backups"
        backups.mkdir()
        printed("backup", bench.live, f"{backups}/")
        check("browse", printed("browse", backups, place))
        check("browse_end", printed("browse", "--end", place))
        for words in ((bench.live, place), ("--end", place)):
            done = snapfs("browse", *words, "-q").ok()
            assert (done.out, done.err) == ("", "")


def test_what_backups_print(bench: Bench) -> None:
    backup = bench.path / "backup"
    done = snapfs("backup", bench.image, backup, "--json", "--progress=json").ok()
    check("backup", json.loads(done.out))
    for line in done.err.splitlines():
        check("progress", json.loads(line))
    check("manifest", json.loads((bench.path / "backup.json").read_text()))
    check("verify", printed("verify", backup))
    check("restore", printed("restore", backup, bench.path / "restored.img"))


def test_what_a_directory_of_backups_prints(bench: Bench) -> None:
    backups = bench.path / "backups"
    backups.mkdir()
    for _ in range(2):
        check("backup", printed("backup", bench.image, backups))
    check("verify_directory", printed("verify", backups))
    check("backups", printed("backups", backups))
    check("restore", printed("restore", backups, bench.path / "restored.img"))


def test_all_instances_are_an_array_of_the_same(bench: Bench) -> None:
    with bench.mounted():
        for status in printed("status"):
            check("status", status)


def test_regions_have_one_shape(bench: Bench) -> None:
    with bench.mounted():
        snapfs("backup", bench.live, bench.path / "backup").ok()
        manifest = json.loads((bench.path / "backup.json").read_text())
        assert printed("map", bench.live)["regions"] == printed("status", bench.live)["snapshot"]["regions"]
        assert manifest["regions"] == printed("map", bench.live)["regions"]


@pytest.mark.parametrize("command", ["mount", "snapshot", "status", "map", "check", "backup", "verify", "release"])
def test_quiet_commands_print_nothing(bench: Bench, command: str) -> None:
    backup = bench.path / "backup"
    words: dict[str, list[str | Path]] = {
        "mount": [bench.image, bench.live, bench.snap],
        "backup": [bench.live, backup],
        "verify": [backup],
        "release": [bench.live, "--all"],
    }
    if command != "mount":
        bench.mount().ok()
    if command == "verify":
        snapfs("backup", bench.live, backup).ok()
    done = snapfs(command, *words.get(command, [bench.live]), "-q").ok()
    assert (done.out, done.err) == ("", "")
    bench.umount().ok()
