"""Restricted unpickler that never imports or calls anything named in a pickle.

A pickle is a program for a small stack machine. Python's own unpickler imports the names in it and
does not limit memory or the hashing of keys. This interpreter implements only the instructions that
create plain values. Names are passed to a function of the caller, which returns a constant or a
`Name`: a description of the result of calling it.

The meaning of names is defined in ``tensors.py`` and ``folders.py``.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from src.serialization.limits import (
    COPIED_BYTES,
    GLOBAL_LENGTH,
    INTEGER_BYTES,
    KEY_LENGTH,
    PICKLE_STEPS,
    TUPLE_KEYS,
    Damaged,
    Refusal,
    shown,
)

Resolve = Callable[[str], Any]
Persistent = Callable[[Any], Any]


@dataclass(frozen=True, eq=False)
class Name:
    """A name in a file.

    Attributes:
        name: Module and name, separated by a dot.
        make: Returns the result of a call with given arguments.
    """

    name: str
    make: Callable[[tuple[Any, ...]], Any]


class Foreign:
    """Placeholder for an object of another class, with its dictionary entries and list items."""

    __slots__ = ("entries", "items", "name", "state")

    def __init__(self, name: str) -> None:
        self.name = name
        self.entries: OrderedDict[Any, Any] = OrderedDict()
        self.items: list[Any] = []
        self.state: Any = None

    def __repr__(self) -> str:
        return f"<{shown(self.name)}, not read>"


_MARK = object()
_SCALARS = (str, int, float, bool, bytes, type(None))
_HIGHEST_PROTOCOL = 5
_ITEM_BYTES = 64


def load(
    data: bytes | memoryview, resolve: Resolve, persistent: Persistent | None = None, start: int = 0
) -> tuple[Any, int]:
    """Read one pickle.

    Args:
        data: Bytes that contain the pickle.
        resolve: Returns the meaning of a name: a `Name` or a constant.
        persistent: Returns the value of a persistent id; by default these are refused.
        start: Offset of the pickle.

    Returns:
        The value, and the offset of the end of the pickle.

    Raises:
        Refusal: If it has an unsupported instruction, or exceeds a limit.
        Damaged: If it is not a pickle.
    """
    machine = _Machine(data, resolve, persistent, start)
    try:
        return machine.run(), machine.position
    except (IndexError, struct.error, UnicodeDecodeError, KeyError, OverflowError) as error:
        raise Damaged(f"its pickle is damaged at byte {machine.position}") from error


def check_keys(keys: Sequence[Any], tuples: int = 0) -> int:
    """Allow only dictionary keys that are cheap to hash: scalars and short tuples of scalars.

    Args:
        keys: The keys.
        tuples: Number of earlier keys that are tuples.

    Returns:
        Number of all keys that are tuples.

    Raises:
        Refusal: If a key is of another type, or there are too many tuples.
    """
    tuples += sum(type(key) is tuple for key in keys)
    if tuples > TUPLE_KEYS:
        raise Refusal(f"more than {TUPLE_KEYS:,} keys of its dictionaries are tuples")
    for key in keys:
        _check_key(key)
    return tuples


def _check_key(key: Any) -> None:
    if type(key) is tuple and len(key) <= KEY_LENGTH:
        for part in key:
            if type(part) not in _SCALARS:
                raise Refusal("a key of a dictionary is a nested tuple")
            _check_integer_key(part)
    elif type(key) in _SCALARS:
        _check_integer_key(key)
    elif isinstance(key, (list, dict, set, tuple, bytearray)):
        raise Refusal(f"a key of a dictionary is a {type(key).__name__}")


def _check_integer_key(key: Any) -> None:
    # Integers that differ by a multiple of 2**61 - 1 have the same hash.
    if type(key) is int and not -(2**63) <= key < 2**64:
        raise Refusal("a key of a dictionary is a huge integer")


class _Machine:
    def __init__(
        self,
        data: bytes | memoryview,
        resolve: Resolve,
        persistent: Persistent | None,
        start: int,
    ) -> None:
        self.data = memoryview(data)
        self.position = start
        self.resolve, self.persistent = resolve, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.tuple_keys = self.copied = 0

    def run(self) -> Any:
        data, size, steps = self.data, len(self.data), 0
        while True:
            if self.position >= size:
                raise Damaged("its pickle is truncated")
            code = data[self.position]
            self.position += 1
            if code == 0x2E:  # STOP
                return self._pop()
            step = _STEPS.get(code)
            if step is None:
                raise Refusal(
                    f"its pickle protocol is not supported (instruction {code:#04x} at byte"
                    f" {self.position - 1})"
                )
            steps += 1
            if steps > PICKLE_STEPS:
                raise Refusal(f"its pickle has more than {PICKLE_STEPS:,} instructions")
            step(self)

    # ------------------------------------------------------------------ bytes

    def _take(self, count: int) -> memoryview:
        end = self.position + count
        if count < 0 or end > len(self.data):
            raise Damaged("its pickle is truncated")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        rest = self.data[self.position : self.position + GLOBAL_LENGTH].tobytes()
        length = rest.find(b"\n")
        if length < 0:
            raise Damaged("a name in its pickle is too long")
        self.position += length + 1
        return rest[:length].decode("utf-8")

    # ------------------------------------------------------------------ stack

    def _pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise Damaged("its pickle is damaged")
        return value

    def _pop_to_mark(self) -> list[Any]:
        stack = self.stack
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise Damaged("its pickle is damaged")
        items = stack[at + 1 :]
        del stack[at:]
        return items

    def _top(self) -> Any:
        value = self.stack[-1]
        if value is _MARK:
            raise Damaged("its pickle is damaged")
        return value

    # ------------------------------------------------------------------ steps

    def protocol(self) -> None:
        if not 2 <= self.data[self.position] <= _HIGHEST_PROTOCOL:
            raise Refusal(f"its pickle protocol is {self.data[self.position]}")
        self.position += 1

    def frame(self) -> None:
        self._take(8)

    def mark(self) -> None:
        self.stack.append(_MARK)

    def pop(self) -> None:
        self.stack.pop()

    def pop_mark(self) -> None:
        self._pop_to_mark()

    def integer(self, length: int) -> None:
        if length > INTEGER_BYTES:
            raise Refusal(f"an integer in it has {length} bytes")
        self.stack.append(int.from_bytes(self._take(length), "little", signed=True))

    def text(self, length: int) -> None:
        self.stack.append(self._take(length).tobytes().decode("utf-8", "surrogatepass"))

    def old_text(self, length: int) -> None:
        """String of Python 2, with unknown encoding."""
        raw = self._take(length).tobytes()
        try:
            self.stack.append(raw.decode("utf-8"))
        except UnicodeDecodeError:
            self.stack.append(raw.decode("latin-1"))

    def raw(self, length: int) -> None:
        self.stack.append(self._take(length).tobytes())

    def tuple_of(self, count: int) -> None:
        items = tuple(self._pop() for _ in range(count))[::-1]
        self.stack.append(items)

    def dictionary(self) -> None:
        flat = self._pop_to_mark()
        self.stack.append({})
        self.set_items(flat)

    def set_items(self, flat: list[Any]) -> None:
        target = self._top()
        entries = target.entries if isinstance(target, Foreign) else target
        if not isinstance(entries, dict) or len(flat) % 2:
            raise Refusal(f"it fills a {type(target).__name__} like a dictionary")
        self.tuple_keys = check_keys(flat[::2], self.tuple_keys)
        entries.update(zip(flat[::2], flat[1::2], strict=True))

    def append_all(self, items: list[Any]) -> None:
        target = self._top()
        entries = target.items if isinstance(target, Foreign) else target
        if type(entries) is not list:
            raise Refusal(f"it fills a {type(target).__name__} like a list")
        entries.extend(items)

    def add_all(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is not set:
            raise Refusal(f"it fills a {type(target).__name__} like a set")
        self.tuple_keys = check_keys(items, self.tuple_keys)
        target.update(items)

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Damaged("a name in its pickle is not a string")
        if len(module) + len(name) > GLOBAL_LENGTH:
            raise Damaged("a name in its pickle is too long")
        self.stack.append(self.resolve(f"{module}.{name}"))

    def global_name(self) -> None:
        module, name = self._line(), self._line()
        self.name(module, name)

    def stack_name(self) -> None:
        name, module = self._pop(), self._pop()
        self.name(module, name)

    def call(self) -> None:
        arguments, made = self._pop(), self._pop()
        if type(arguments) is not tuple:
            raise Damaged("the arguments of a call in its pickle are not a tuple")
        self._count_copy(arguments[0] if arguments else None)
        if isinstance(made, Name):
            self.stack.append(made.make(arguments))
        elif isinstance(made, Foreign):
            self.stack.append(Foreign(made.name))
        else:
            raise Refusal(f"it calls a {type(made).__name__}")

    def _count_copy(self, argument: Any) -> None:
        """Limit the size of copies: dictionaries, sets and bytes copy their first argument."""
        if isinstance(argument, (str, bytes)):
            self.copied += len(argument)
        elif isinstance(argument, (list, tuple, dict, set)):
            self.copied += len(argument) * _ITEM_BYTES
        if self.copied > COPIED_BYTES:
            raise Refusal("its pickle copies the same values too often")

    def call_with_names(self) -> None:
        named = self._pop()
        if named:
            raise Refusal("it creates an object with keyword arguments")
        self.call()

    def build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Foreign):
            target.state = state
        elif type(target) is not OrderedDict:
            raise Refusal(f"it sets attributes of a {type(target).__name__}")

    def persistent_id(self) -> None:
        if self.persistent is None:
            raise Refusal("it has references to external objects")
        self.stack.append(self.persistent(self._pop()))

    def put(self, index: int) -> None:
        self.memo[index] = self._top()

    def memoize(self) -> None:
        self.put(len(self.memo))

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])


def _push(make: Callable[[], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(make())


def _push_number(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine._number(form))


_STEPS: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine.protocol,
    0x95: _Machine.frame,
    ord("("): _Machine.mark,
    ord("0"): _Machine.pop,
    ord("1"): _Machine.pop_mark,
    ord("N"): _push(lambda: None),
    0x88: _push(lambda: True),
    0x89: _push(lambda: False),
    ord("}"): _push(dict),
    ord("]"): _push(list),
    ord(")"): _push(tuple),
    0x8F: _push(set),
    ord("J"): _push_number("<i"),
    ord("K"): _push_number("<B"),
    ord("M"): _push_number("<H"),
    ord("G"): _push_number(">d"),
    0x8A: lambda m: m.integer(m._number("<B")),
    0x8B: lambda m: m.integer(m._number("<I")),
    ord("X"): lambda m: m.text(m._number("<I")),
    0x8C: lambda m: m.text(m._number("<B")),
    0x8D: lambda m: m.text(m._number("<Q")),
    ord("T"): lambda m: m.old_text(m._number("<I")),
    ord("U"): lambda m: m.old_text(m._number("<B")),
    ord("B"): lambda m: m.raw(m._number("<I")),
    ord("C"): lambda m: m.raw(m._number("<B")),
    0x8E: lambda m: m.raw(m._number("<Q")),
    ord("t"): lambda m: m.stack.append(tuple(m._pop_to_mark())),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("l"): lambda m: m.stack.append(m._pop_to_mark()),
    ord("d"): _Machine.dictionary,
    ord("s"): lambda m: m.set_items([m._pop(), m._pop()][::-1]),
    ord("u"): lambda m: m.set_items(m._pop_to_mark()),
    ord("a"): lambda m: m.append_all([m._pop()]),
    ord("e"): lambda m: m.append_all(m._pop_to_mark()),
    0x90: lambda m: m.add_all(m._pop_to_mark()),
    ord("c"): _Machine.global_name,
    0x93: _Machine.stack_name,
    ord("R"): _Machine.call,
    0x81: _Machine.call,
    0x92: _Machine.call_with_names,
    ord("b"): _Machine.build,
    ord("Q"): _Machine.persistent_id,
    ord("q"): lambda m: m.put(m._number("<B")),
    ord("r"): lambda m: m.put(m._number("<I")),
    0x94: _Machine.memoize,
    ord("h"): lambda m: m.get(m._number("<B")),
    ord("j"): lambda m: m.get(m._number("<I")),
}
"""Supported instructions by opcode. Others are refused: instances of old-style classes, the
extension registry, text numbers and names of protocol 0, out-of-band buffers, duplication."""
