"""The object graph of a file of `torch.save`, without running what a pickle can run.

A pickle is a program for a stack machine, and it may call anything. This machine knows only what
`torch.save` writes for containers, numbers, text and tensors; any other name or instruction is
refused before it has an effect. It imports nothing by name and calls nothing that the file names.
Instructions: CPython, Lib/pickletools.py (its decoder is used) and Lib/pickle.py.
"""

from __future__ import annotations

import pickletools  # decodes instructions; runs none
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from planner.trace.importers.found import bad

_DTYPES: Final = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
}
_TENSOR: Final = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor")
_PARAMETER: Final = "torch._utils _rebuild_parameter"
_DICT: Final = "collections OrderedDict"
_KNOWN: Final = {*_TENSOR, _PARAMETER, _DICT, *(f"torch {name}" for name in _DTYPES)}
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS: Final = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_MOST_OPERATIONS: Final = 200_000_000


@dataclass(frozen=True)
class Name:
    """A global name of the file; nothing is imported for it."""

    text: str


@dataclass(frozen=True)
class Storage:
    """Numbers in another member of the file."""

    dtype: str
    key: str
    numel: int


@dataclass(frozen=True)
class StoredTensor:
    """A view into a storage, not read yet."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Mark:
    """Where a list of operands begins on the stack."""


class _Machine:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def refuse(self, what: str) -> Exception:
        hint = "only tensors, lists, dicts, numbers and text are read: nothing in the file is ever run"
        return bad(self.path, f"{what} in the pickle: refused", hint, key="data.pkl")

    def operands(self) -> list[Any]:
        """Everything down to the last mark."""
        found = []
        while not isinstance(value := self.stack.pop(), _Mark):
            found.append(value)
        return found[::-1]

    def step(self, code: str, arg: Any) -> None:
        stack = self.stack
        if code in _NUMBERS:
            stack.append(arg)
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in ("BINPUT", "LONG_BINPUT"):
            self.memo[arg] = stack[-1]
        elif code == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[arg])
        elif code == "MARK":
            stack.append(_Mark())
        elif code in ("GLOBAL", "STACK_GLOBAL", "BINPERSID", "REDUCE", "BUILD"):
            self.call(code, arg)
        elif code not in ("PROTO", "FRAME"):
            self.build(code)

    def build(self, code: str) -> None:
        """Containers."""
        stack = self.stack
        match code:
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(self.operands()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple([stack.pop() for _ in range(int(code[-1]))][::-1]))
            case "APPEND":
                value = stack.pop()
                self.top(list).append(value)
            case "APPENDS":
                values = self.operands()
                self.top(list).extend(values)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self.top(dict)[key] = value
            case "SETITEMS":
                items = self.operands()
                self.top(dict).update(zip(items[::2], items[1::2], strict=True))
            case _:
                raise self.refuse(f"instruction {code}")

    def call(self, code: str, arg: Any) -> None:
        """Names, references to storages, and what would be calls."""
        stack = self.stack
        if code == "GLOBAL":
            stack.append(self.name(str(arg)))
        elif code == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(self.name(f"{module} {attribute}"))
        elif code == "BINPERSID":
            stack.append(self.storage(stack.pop()))
        elif code == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self.made(function, arguments))
        else:
            stack.pop()  # BUILD: attributes of an OrderedDict, such as _metadata of a state dict
            self.top(dict)

    def top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise self.refuse(f"items for a {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    def name(self, text: str) -> Name:
        if text not in _KNOWN:
            raise self.refuse(text.replace(" ", "."))
        return Name(text)

    def storage(self, reference: Any) -> Storage:
        match reference:
            case ("storage", Name(text), str(key), str(), int(numel)) if text.startswith("torch ") and numel >= 0:
                return Storage(_DTYPES[text.removeprefix("torch ")], key, numel)
        raise self.refuse("a reference that is no storage")

    def made(self, function: Any, arguments: Any) -> Any:
        match function, arguments:
            case Name(text), () if text == _DICT:
                return {}
            case Name(text), (StoredTensor() as tensor, *_) if text == _PARAMETER:
                return tensor
            case Name(text), (Storage() as storage, int(offset), tuple(size), tuple(stride), *_) if text in _TENSOR:
                naturals = all(type(value) is int and value >= 0 for value in (offset, *size, *stride))
                if naturals and len(size) == len(stride) <= 8:
                    return StoredTensor(storage, offset, size, stride)
        raise self.refuse("a call that makes no tensor")


def load(raw: bytes, path: Path) -> Any:
    """The containers, numbers, texts and tensors of a pickle of `torch.save`.

    Raises:
        InputError: cut off, damaged, or with anything in it that could run.
    """
    machine = _Machine(path)
    try:
        for count, (operation, arg, _) in enumerate(pickletools.genops(raw)):
            if operation.name == "STOP":
                if len(machine.stack) != 1:
                    break
                return machine.stack[0]
            if count > _MOST_OPERATIONS:
                break
            machine.step(operation.name, arg)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise bad(path, f"the pickle is damaged ({error})", "copy the file again", key="data.pkl") from None
    raise bad(path, "the pickle is damaged (no end)", "copy the file again", key="data.pkl")
