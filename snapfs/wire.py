"""How the messages of `protocol` are written and read: the one owner of the wire format.

A request is one line, `{"op": NAME, ...}`; an answer is one, `{"ok": true, ...}` or `{"ok": false, "error":
SENTENCE}`. Each field has its own name and is what JSON has for it.

Rules:
- A request with a field that is missing, unknown or wrong is refused, since nobody knows what it was to change.
- Of an answer, fields that are unknown are left out: a newer server may tell more.
- No number is below 0, or larger than an offset in a file can be.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Final, get_args, get_origin, get_type_hints

from snapfs.errors import SnapfsError
from snapfs.protocol import REQUESTS, AnswerT, Request

_MAX_NUMBER: Final = (1 << 63) - 1
_MAX_SHOWN: Final = 40  # of a value that is not understood


class BadMessageError(SnapfsError):
    """What came is no message of this protocol."""


def request_line(request: Request[Any]) -> bytes:
    return _line({"op": request.op, **_facts(request)})


def answer_line(answer: Any) -> bytes:
    return _line({"ok": True, **_facts(answer)})


def refusal_line(sentence: str) -> bytes:
    return _line({"ok": False, "error": sentence})


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _facts(message: Any) -> dict[str, Any]:
    # Not in depth, as asdict would: a status or a map is data already, and may be long.
    return {one.name: _plain(getattr(message, one.name)) for one in fields(message)}


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def parse_request(line: bytes) -> Request[Any]:
    """The request in a line; BadMessageError when there is none."""
    try:
        message = _object(line)
        op = message.pop("op", None)
        kind = REQUESTS.get(op) if isinstance(op, str) else None
        if kind is None:
            raise ValueError(f"there is no operation {op!r}")
        request: Request[Any] = parsed(kind, message, op)
        if unknown := message.keys() - vars(request).keys():
            raise ValueError(f"{op} has no {min(unknown)}")
        return request
    except ValueError as error:
        raise BadMessageError(
            f"The request is not understood ({error}); whoever asks is of another version than the server, so mount "
            "the image again."
        ) from error


def parse_answer(request: Request[AnswerT], line: bytes) -> AnswerT:
    """The answer to `request`. SnapfsError with the server's own sentence when it refuses; BadMessageError."""
    try:
        message = _object(line)
        if message.pop("ok", None) is True:
            answer: AnswerT = parsed(request.answer, message, request.op)
            return answer
    except ValueError as error:
        raise BadMessageError(f"the answer is not understood ({error})") from error
    raise SnapfsError(str(message.get("error", "The server gave no reason.")))


def _object(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise ValueError("it is no object in JSON")
    return message


def parsed(kind: Any, value: Any, name: str) -> Any:
    """`value`, from JSON, as one of `kind`: a class of this module or the type of a field. ValueError when it is
    none; `name` is what it is called then."""
    if is_dataclass(kind):
        return _parsed_object(kind, value, name)
    inner = get_args(kind)
    if get_origin(kind) is UnionType:
        (other,) = (one for one in inner if one is not NoneType)
        return None if value is None else parsed(other, value, name)
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(parsed(inner[0], one, name) for one in value)
    if get_origin(kind) is dict and isinstance(value, dict):
        return value
    if kind is float and _is_number(value, (int, float)):
        return float(value)
    if (kind is int and _is_number(value, int)) or (kind in (str, bool) and type(value) is kind):
        return value
    raise ValueError(f"{name} cannot be {json.dumps(value)[:_MAX_SHOWN]}")


def _parsed_object(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no object")
    kinds = _kinds(kind)
    for one in fields(kind):
        if one.name not in value and one.default is MISSING:
            raise ValueError(f"{name} has no {one.name}")
    return kind(**{key: parsed(kinds[key], found, key) for key, found in value.items() if key in kinds})


def _is_number(value: Any, kind: Any) -> bool:
    # False of what is no number at all (NaN), too.
    return isinstance(value, kind) and not isinstance(value, bool) and 0 <= value <= _MAX_NUMBER


@cache
def _kinds(kind: type[Any]) -> dict[str, Any]:
    """The fields of a class and their types."""
    hints = get_type_hints(kind)
    return {one.name: hints[one.name] for one in fields(kind)}
