"""The live server's end of the control socket: what clients get that ask wrongly, together, or go away."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from snapfs.errors import SnapfsError
from snapfs.protocol import CutPrepared, Done, GetStatus, PrepareCut, Request, StatusGiven, StopMap, deadline_in
from snapfs.servers.control import Client, Handler, listen, serve
from snapfs.servers.turns import Turns
from snapfs.wire import request_line


class Peer:
    """A client that says what a test wants."""

    def __init__(self, store: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(store / "socket"))
        self._file = self._socket.makefile("rb")

    def send(self, line: bytes) -> None:
        self._socket.sendall(line)

    async def answer(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(await trio.to_thread.run_sync(self._file.readline))
        return answer

    async def ask(self, request: Request[Any]) -> dict[str, Any]:
        self.send(request_line(request))
        return await self.answer()

    def close(self) -> None:
        self._file.close()
        self._socket.close()


async def nobody_left(client: Client) -> None:
    """Nothing is to be done."""


@contextlib.asynccontextmanager
async def serving(
    store: Path, handler: Handler, on_left: Callable[[Client], Awaitable[None]] = nobody_left
) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, listen(store), handler, on_left)
        with trio.fail_after(20):
            yield
        nursery.cancel_scope.cancel()


async def answer_status(request: Request[Any], client: Client) -> Any:
    return StatusGiven({})


def test_one_connection_bears_several_requests(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, answer_status):
            peer = Peer(tmp_path)
            for _ in range(2):
                assert await peer.ask(GetStatus()) == {"ok": True, "status": {}}
            peer.close()

    trio.run(main)


def test_a_bad_request_gets_a_sentence_and_ends_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, answer_status):
            peer = Peer(tmp_path)
            peer.send(b'{"op": "stop-map"}\n')
            answer = await peer.answer()
            assert not answer["ok"]
            assert answer["error"].startswith("The request is not understood (stop-map has no deadline_s);")
            assert (await peer.ask(GetStatus()))["ok"]
            peer.close()

    trio.run(main)


def test_a_request_without_end_is_no_request(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, answer_status):
            peer = Peer(tmp_path)
            await trio.to_thread.run_sync(peer.send, b" " * (1 << 20))
            assert "is not understood" in (await peer.answer())["error"]
            peer.close()

    trio.run(main)


def test_a_handler_that_fails_says_where_to_look(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(request: Request[Any], client: Client) -> Any:
        raise RuntimeError("broken")

    async def main() -> None:
        async with serving(tmp_path, fail):
            peer = Peer(tmp_path)
            answer = await peer.ask(GetStatus())
            assert answer == {"ok": False, "error": "The server failed; its log says how."}
            peer.close()

    trio.run(main)
    assert "RuntimeError: broken" in caplog.text


def test_whoever_has_closed_is_gone_though_his_request_is_still_to_be_read(tmp_path: Path) -> None:
    async def main() -> None:
        heard: list[bool] = []
        told = trio.Event()

        async def handler(request: Request[Any], client: Client) -> Any:
            heard.append(client.is_gone)
            with pytest.raises(SnapfsError, match="has gone"):
                client.check_waits()
            return Done()

        async def on_left(client: Client) -> None:
            told.set()

        async with serving(tmp_path, handler, on_left):
            peer = Peer(tmp_path)
            peer.send(request_line(StopMap(deadline_s=deadline_in(20))))
            peer.close()
            await told.wait()
        assert heard == [True]

    trio.run(main)


def test_the_turn_goes_from_one_client_to_the_next_when_it_leaves(tmp_path: Path) -> None:
    async def main() -> None:
        turns = Turns()

        async def handler(request: Request[Any], client: Client) -> Any:
            assert isinstance(request, PrepareCut)
            await turns.take(client, request.left_s)
            return CutPrepared(1)

        async def on_left(client: Client) -> None:
            turns.give_back(client)

        async with serving(tmp_path, handler, on_left):
            first, second = Peer(tmp_path), Peer(tmp_path)
            assert (await first.ask(PrepareCut(deadline_s=deadline_in(20))))["ok"]
            assert (await first.ask(PrepareCut(deadline_s=deadline_in(20))))["ok"]
            refused = await second.ask(PrepareCut(deadline_s=deadline_in(0.05)))
            assert refused["error"].startswith("Another snapshot is being taken by process ")
            second.send(request_line(PrepareCut(deadline_s=deadline_in(20))))
            first.close()
            assert (await second.answer())["ok"]
            second.close()

    trio.run(main)


def test_a_turn_is_not_kept_for_one_who_left_while_he_waited(tmp_path: Path) -> None:
    async def main() -> None:
        turns = Turns()
        asked = trio.Semaphore(0)

        async def handler(request: Request[Any], client: Client) -> Any:
            assert isinstance(request, PrepareCut)
            asked.release()
            await turns.take(client, request.left_s)
            return CutPrepared(1)

        async def on_left(client: Client) -> None:
            turns.give_back(client)

        async with serving(tmp_path, handler, on_left):
            first, gone, last = Peer(tmp_path), Peer(tmp_path), Peer(tmp_path)
            for peer in (first, gone, last):
                peer.send(request_line(PrepareCut(deadline_s=deadline_in(20))))
                await asked.acquire()
            assert (await first.answer())["ok"]
            gone.close()
            first.close()
            assert (await last.answer())["ok"]
            last.close()

    trio.run(main)
