"""Read untrusted JSON files with limits on size, nesting and numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from src.serialization.limits import JSON_BYTES, Damaged, Refusal, shown

_DIGITS = 20  # of an integer; 64 bits have at most 20


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Raises:
        Damaged: If it is not valid JSON, or not an object.
        Refusal: If it exceeds a limit (size, nesting, length of numbers) or has duplicate keys.
    """
    if not path.is_file():
        raise Damaged("it is not a regular file")
    if path.stat().st_size > JSON_BYTES:
        raise Refusal(f"it has more than {JSON_BYTES:,} bytes")
    with path.open("rb") as file:
        return parse_object(file.read(JSON_BYTES))


def parse_object(data: bytes) -> dict[str, Any]:
    """Like `read_object`, for bytes."""
    try:
        content = json.loads(
            data.decode("utf-8"),
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_constant,
            object_pairs_hook=_unique,
        )
    except RecursionError as error:
        raise Refusal("it is nested too deeply") from error
    except ValueError as error:
        raise Damaged(f"it is not valid JSON ({shown(error)})") from error
    if not isinstance(content, dict):
        raise Damaged(f"expected an object, got {type(content).__name__}")
    return content


def _integer(text: str) -> int:
    if len(text) > _DIGITS:
        raise Refusal(f"it has an integer with {len(text):,} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Refusal(f"it has the number {shown(text, 20)}")
    return value


def _constant(text: str) -> float:
    raise Refusal(f"it has the number {text}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise Refusal("it has duplicate keys")
    return content
