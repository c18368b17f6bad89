"""The structure of a pickle gone through by hand before torch reads it.

Tuples inside tuples are harmless until one is a key of a dict: Python then walks through all of it
without a look at Ctrl-C. Levels by the hundred thousand end the process, and a tuple that holds one
tuple twice, that again one twice, and so on sixty times is walked through for years. Printing what
is no class in an error message does the same. So: no such tuples, and only named things are called.
"""

from __future__ import annotations

import pickletools
from collections.abc import Generator
from typing import IO, Any, NamedTuple, cast

MAX_STRUCTURE_BYTES = 64 << 20
"""Of a checkpoint without its tensors' numbers; a published one has about half a megabyte."""
MAX_TUPLE_LEVELS = 100
MAX_TUPLE_ITEMS = 100_000
"""With all that is inside, counted as often as it is there."""


class _Item(NamedTuple):
    """What is known of a thing on the pickle's stack."""

    levels: int = 0
    items: int = 1
    is_named: bool = False


_PLAIN, _NAMED = _Item(), _Item(is_named=True)
_PUSHED = {
    **dict.fromkeys(
        ("NONE", "NEWFALSE", "NEWTRUE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"), _PLAIN
    ),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"), _PLAIN),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINSTRING"), _PLAIN),
    "EMPTY_TUPLE": _Item(levels=1),
    "GLOBAL": _NAMED,
}
_POPPED = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}
_IN_TUPLE = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def named_in(file: IO[bytes]) -> Generator[tuple[str, str]]:
    """Module and name of each class or function that the next pickle of `file` names.

    Takes the instructions that torch's restricted reader takes, and no others.

    Raises:
        ValueError: it is malformed, or made to harm the program that reads it.
    """
    stack: list[_Item] = []
    marked: list[list[_Item]] = []
    memo: dict[Any, _Item] = {}
    try:
        for opcode, argument, position in pickletools.genops(file):
            code = opcode.name
            if position is not None and position > MAX_STRUCTURE_BYTES:
                raise ValueError("has a structure of an extreme size")
            if code == "GLOBAL":
                module, name = cast("str", argument).split(" ", 1)
                yield module, name
            if code in _PUSHED:
                stack.append(_PUSHED[code])
            elif code in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif code in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif code in _IN_TUPLE:
                stack.append(_tuple([stack.pop() for _ in range(_IN_TUPLE[code])]))
            elif code in _POPPED:
                for _ in range(_POPPED[code]):
                    stack.pop()
            elif code == "MARK":
                marked.append(stack)
                stack = []
            elif code in ("TUPLE", "APPENDS", "SETITEMS"):
                inside, stack = stack, marked.pop()
                if code == "TUPLE":
                    stack.append(_tuple(inside))
            elif code in ("REDUCE", "NEWOBJ"):
                stack.pop()
                if not stack.pop().is_named:
                    raise ValueError("calls something that has no name")
                stack.append(_PLAIN)
            elif code == "BINPERSID":
                stack[-1] = _PLAIN
            elif code not in ("PROTO", "STOP"):
                raise ValueError(f"has the instruction {code}, which torch.save never writes")
    except (IndexError, KeyError) as error:
        raise ValueError("has a malformed structure") from error


def _tuple(inside: list[_Item]) -> _Item:
    item = _Item(
        1 + max((one.levels for one in inside), default=0), 1 + sum(one.items for one in inside)
    )
    if item.levels > MAX_TUPLE_LEVELS or item.items > MAX_TUPLE_ITEMS:
        raise ValueError("has tuples in tuples of an extreme size")
    return item
