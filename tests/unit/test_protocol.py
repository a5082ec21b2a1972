"""The messages of the control socket: written and read back, and refused with one sentence when they are wrong."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from cow.disk import directory
from snapfs import protocol, wire
from snapfs.cut_facts import NOTHING_FROZEN, Facts, Unfrozen, Writer
from snapfs.errors import SnapfsError
from snapfs.protocol import (
    REQUESTS,
    BeginMap,
    CloseLive,
    CutPrepared,
    CutTaken,
    DeleteSnapshot,
    Done,
    ExpectEnd,
    FactsNoted,
    GetMap,
    GetSnapshot,
    GetStatus,
    HoldCheckpoint,
    HoldWrites,
    LetGoCheckpoints,
    MapGiven,
    NameSnapshot,
    NoteFacts,
    NoteServer,
    OfCut,
    OfSnapshot,
    PrepareCut,
    Release,
    Released,
    Request,
    ResumeWrites,
    Reverted,
    RevertTo,
    SetLimit,
    SnapshotGiven,
    StatusGiven,
    StopMap,
    TakeCut,
    TellDamage,
    Timed,
    WriteOut,
    deadline_in,
)
from snapfs.wire import BadMessageError, answer_line, parse_answer, parse_request, refusal_line, request_line

FACTS = Facts(
    freeze_ms=1.5,
    frozen=("/mnt/a", "qga:/run/agent"),
    frozen_offsets=(0, 1 << 20),
    not_frozen=(Unfrozen("/mnt/fat", "cannot be frozen", None), Unfrozen("/mnt/b", "was thawed", 512)),
    writers=(Writer("qemu", 0, 4096), Writer("dd")),
)
PAIRS: list[tuple[Request[Any], Any]] = [
    (GetStatus(), StatusGiven({"version": 1, "error": None})),
    (GetSnapshot(id="x"), SnapshotGiven({"id": "x"})),
    (SetLimit(0), Done()),
    (ExpectEnd(compactor_is_gone=True), Done()),
    (WriteOut(deadline_s=3.5), Done()),
    (NoteServer("compactor", None), Done()),
    (NoteServer("snapshot", "it died"), Done()),
    (TellDamage(generation=3, what="a record"), Done()),
    (Release(id="x", offset=0, length=4096, deadline_s=2.0), Released(1)),
    (GetMap(id="x"), MapGiven("ready", "cut-00000003/free", ({"kind": "ext4"},))),
    (GetMap(id="x"), MapGiven("computing", None, ())),
    (BeginMap(), Done()),
    (StopMap(deadline_s=1.0), Done()),
    (PrepareCut(deadline_s=1.0), CutPrepared(4)),
    (DeleteSnapshot(id="x", deadline_s=1.0), Done()),
    (HoldCheckpoint(id="x", holder="a" * 32, deadline_s=1.0), Done()),
    (LetGoCheckpoints(holder="a" * 32, keep=("x", "y"), deadline_s=1.0), Done()),
    (NameSnapshot(id="x", name="mon", deadline_s=1.0), Done()),
    (CloseLive(id="a", deadline_s=1.0), Done()),
    (RevertTo(id="x"), Reverted(4096)),
    (HoldWrites(generation=4, deadline_s=1.0), Done()),
    (ResumeWrites(), Done()),
    (TakeCut(generation=4, deadline_s=1.0), CutTaken("x", "2026-01-31T12:00:00Z", 1.25, 0)),
    (NoteFacts(generation=4, facts=FACTS, deadline_s=1.0), FactsNoted(True)),
    (NoteFacts(generation=4, facts=NOTHING_FROZEN, deadline_s=1.0), FactsNoted(False)),
]
RELEASE: dict[str, Any] = {
    "op": "release",
    "id": "x",
    "offset": 0,
    "length": 4096,
    "deadline_s": 2.0,
}


@pytest.mark.parametrize(("request_", "answer"), PAIRS, ids=lambda one: type(one).__name__)
def test_what_is_written_is_read(request_: Request[Any], answer: Any) -> None:
    assert parse_request(request_line(request_)) == request_
    assert parse_answer(request_, answer_line(answer)) == answer


def test_every_operation_is_tried_here() -> None:
    assert {one.op for one, _ in PAIRS} == set(REQUESTS)
    assert all(isinstance(answer, one.answer) for one, answer in PAIRS)


def test_a_message_is_one_line() -> None:
    for one, answer in PAIRS:
        for line in (request_line(one), answer_line(answer)):
            assert line.endswith(b"\n")
            assert line.count(b"\n") == 1


def test_the_table_of_the_module_names_what_each_message_says() -> None:
    table = {}
    for line in (protocol.__doc__ or "").splitlines():
        words = line.split()
        if line.startswith("    ") and words and words[0] in REQUESTS:
            table[words[0]] = line
    assert table.keys() == REQUESTS.keys()
    for op, one in REQUESTS.items():
        assert one.answer.__name__ in table[op]
        assert ("OfCut" in table[op]) == issubclass(one, OfCut)
        assert ("OfSnapshot" in table[op]) == issubclass(one, OfSnapshot)
        assert ("Timed" in table[op]) == issubclass(one, Timed)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"op": "rm"}, "there is no operation 'rm'"),
        ({"op": None}, "there is no operation None"),
        ({"op": ["release"]}, "there is no operation ['release']"),
        ({"offset": -1}, "offset cannot be -1"),
        ({"offset": 1 << 63}, "offset cannot be 9223372036854775808"),
        ({"offset": 1.0}, "offset cannot be 1.0"),
        ({"offset": True}, "offset cannot be true"),
        ({"offset": None}, "offset cannot be null"),
        ({"id": 7}, "id cannot be 7"),
        ({"deadline_s": float("nan")}, "deadline_s cannot be NaN"),
        ({"deadline_s": float("inf")}, "deadline_s cannot be Infinity"),
        ({"deadline_s": 10**400}, "deadline_s cannot be 1000000000000000000000000000000000000000"),
        ({"force": True}, "release has no force"),
    ],
)
def test_a_wrong_field_is_refused_by_name(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(BadMessageError, match="is not understood") as refusal:
        parse_request(json.dumps(RELEASE | changes).encode())
    assert f"({why})" in refusal.value.sentence


@pytest.mark.parametrize("name", ["id", "offset", "length", "deadline_s"])
def test_a_missing_field_is_refused_by_name(name: str) -> None:
    message = {key: value for key, value in RELEASE.items() if key != name}
    with pytest.raises(BadMessageError, match=f"release has no {name}"):
        parse_request(json.dumps(message).encode())


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ([], "facts is no object"),
        ({"frozen": "/mnt"}, "frozen cannot be"),
        ({"frozen": [1]}, "frozen cannot be 1"),
        ({"frozen_offsets": [-1]}, "frozen_offsets cannot be -1"),
        ({"not_frozen": [[]]}, "not_frozen is no object"),
        ({"writers": [{"name": None}]}, "name cannot be null"),
    ],
)
def test_wrong_facts_are_refused(facts: Any, why: str) -> None:
    line = json.loads(request_line(NoteFacts(generation=4, facts=FACTS, deadline_s=1.0)))
    line["facts"] = line["facts"] | facts if isinstance(facts, dict) else facts
    with pytest.raises(BadMessageError, match=why):
        parse_request(json.dumps(line).encode())


@pytest.mark.parametrize("line", [b"", b"\n", b"null", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'"status"'])
def test_what_is_no_object_is_refused(line: bytes) -> None:
    for parse in (parse_request, lambda line: parse_answer(GetStatus(), line)):
        with pytest.raises(BadMessageError):
            parse(line)


def test_a_refusal_is_raised_with_the_servers_sentence() -> None:
    with pytest.raises(SnapfsError, match="There is none; make one") as refusal:
        parse_answer(GetStatus(), refusal_line("There is none; make one."))
    assert refusal.value.sentence == "There is none; make one."


def test_what_a_newer_server_tells_besides_is_left_out() -> None:
    line = json.loads(answer_line(Released(1))) | {"returned_bytes": 4096}
    release = Release(id="x", offset=0, length=1, deadline_s=1.0)
    assert parse_answer(release, json.dumps(line).encode()) == Released(1)


def test_a_passed_deadline_is_refused() -> None:
    PrepareCut(deadline_s=deadline_in(60)).check_time()
    with pytest.raises(SnapfsError, match="time that was given for it is over"):
        PrepareCut(deadline_s=time.monotonic()).check_time()


def test_another_generation_is_refused() -> None:
    told = NoteFacts(generation=3, facts=NOTHING_FROZEN, deadline_s=1.0)
    told.check_present(3)
    for present in (2, 4):
        with pytest.raises(SnapfsError, match="another one has taken its place"):
            told.check_present(present)


def test_the_socket_is_where_the_store_keeps_it() -> None:
    assert protocol.SOCKET_NAME == directory.SOCKET_NAME


def test_no_field_is_called_like_what_the_wire_adds() -> None:
    for one in REQUESTS.values():
        assert not {"op", "ok", "error"} & wire._kinds(one).keys()  # type: ignore[arg-type]
        assert not {"op", "ok", "error"} & wire._kinds(one.answer).keys()
