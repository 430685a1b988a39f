"""The pickle inside a PyTorch file, read as data: a closed list of opcodes and of names, nothing imported, nothing run.

`pickletools.genops` splits the bytes into opcodes and executes none. What they build here is plain data, references to
storages and tensors over them; whatever else a pickle asks for is refused by its name.
"""

from __future__ import annotations

import dataclasses
import pickletools
import struct
import warnings
from collections.abc import Callable
from typing import Any

from vftok.runtime.words import brief, cut

MAX_VALUES = 1 << 20  # stack and memo entries of one pickle
MAX_OPCODES = 1 << 20  # a checkpoint of 10,000 tensors has 300,000
MAX_KEY = 1 << 31  # of numbers as keys, such as an EMA's rate: larger ones can be made to collide
DTYPES = {  # of storages and of tensors: torch's name -> NumPy's
  "Double": "float64",
  "Float": "float32",
  "Half": "float16",
  "BFloat16": "bfloat16",
  "Long": "int64",
  "Int": "int32",
  "Short": "int16",
  "Char": "int8",
  "Byte": "uint8",
  "Bool": "bool",
}


class NotData(ValueError):
  """What a file holds is damaged or more than data; the message is the reason alone."""


@dataclasses.dataclass(frozen=True)
class Name:
  """A global that a pickle names; it stands for itself."""

  module: str
  name: str

  def __str__(self) -> str:
    return f"{self.module}.{self.name}"


@dataclasses.dataclass(frozen=True)
class Storage:
  """Numbers of a file's member `key`. dtype: NumPy's name, "" where the tensor says it."""

  key: str
  dtype: str
  size: int


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A view of a storage; offset and strides in elements."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]
  dtype: str


def parse(data: bytes) -> Any:
  """What a pickle holds: dicts, lists, tuples, text, numbers, and `Tensor`s.

  Raises:
    NotData: damage, or an opcode or a global beyond those of plain data and tensors; the sentence names it.
  """
  machine, at = _Machine(), 0
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of odd escapes
      for number, (opcode, argument, place) in enumerate(pickletools.genops(data)):
        at = place or 0
        if number > MAX_OPCODES:
          raise NotData(f"it has more than {MAX_OPCODES} opcodes")
        operation = OPERATIONS.get(opcode.name)
        if operation is None:
          raise NotData(f"it has the opcode {opcode.name}, which neither plain data nor tensors need")
        operation(machine, argument)
        if len(machine.stack) + len(machine.marks) + len(machine.memo) > MAX_VALUES:
          raise NotData(f"it has more than {MAX_VALUES} values")
  except NotData:
    raise
  except (struct.error, IndexError, KeyError, TypeError, OverflowError, ValueError, AttributeError):
    raise NotData(f"it is damaged after byte {at} of {len(data)}") from None
  if len(machine.stack) != 1:
    raise NotData("it is damaged")
  return machine.stack[0]


class _Machine:
  """A stack and a memo. The methods are what opcodes do."""

  def __init__(self):
    self.stack: list[Any] = []
    self.marks: list[int] = []  # where groups of values on the stack begin
    self.memo: dict[int, Any] = {}

  def nothing(self, argument) -> None:
    pass

  def push(self, argument) -> None:
    self.stack.append(argument)

  def mark(self, argument) -> None:
    self.marks.append(len(self.stack))

  def _group(self) -> list[Any]:
    """Values above the last mark, which they leave with it."""
    at = self.marks.pop()
    values = self.stack[at:]
    del self.stack[at:]
    return values

  def put(self, argument) -> None:
    self.memo[argument] = self._top()

  def memoize(self, argument) -> None:
    self.memo[len(self.memo)] = self._top()

  def get(self, argument) -> None:
    self.stack.append(self.memo[argument])

  def _top(self) -> Any:
    if len(self.stack) <= (self.marks[-1] if self.marks else 0):
      raise NotData("it is damaged")
    return self.stack[-1]

  def _pop(self) -> Any:
    value = self._top()
    self.stack.pop()
    return value

  def pop(self, argument) -> None:
    self._pop()

  def group_tuple(self, argument) -> None:
    values = self._group()
    self.stack.append(tuple(values))

  def group_list(self, argument) -> None:
    values = self._group()
    self.stack.append(values)

  def group_dict(self, argument) -> None:
    values = self._group()
    self.stack.append({})
    self._set(values)

  def append(self, argument) -> None:
    value = self._pop()
    self._extend([value])

  def appends(self, argument) -> None:
    self._extend(self._group())

  def _extend(self, values) -> None:
    if type(self._top()) is not list:
      raise NotData("it is damaged")
    self.stack[-1].extend(values)

  def set_item(self, argument) -> None:
    value, key = self._pop(), self._pop()
    self._set([key, value])

  def set_items(self, argument) -> None:
    self._set(self._group())

  def _set(self, values) -> None:
    if type(self._top()) is not dict or len(values) % 2:
      raise NotData("it is damaged")
    for key, value in zip(values[::2], values[1::2], strict=True):
      if type(key) is not str and not (type(key) in (int, float) and abs(key) < MAX_KEY):
        raise NotData("it has a dict whose keys are neither text nor numbers")
      self.stack[-1][key] = value

  def named(self, argument) -> None:
    module, _, name = argument.partition(" ")
    self._name(module, name)

  def stack_named(self, argument) -> None:
    name, module = self._pop(), self._pop()
    self._name(module, name)

  def _name(self, module, name) -> None:
    if not isinstance(module, str) or not isinstance(name, str):
      raise NotData("it is damaged")
    if (module, name) not in NAMES:
      raise NotData(f"it asks for {cut(module)}.{cut(name)}, which neither plain data nor tensors need")
    self.stack.append(Name(module, name))

  def reduce(self, argument) -> None:
    arguments, callee = self._pop(), self._pop()
    if not isinstance(callee, Name) or type(arguments) is not tuple:
      raise NotData("it calls what is no function")
    self.stack.append(_called(callee, arguments))

  def build(self, argument) -> None:
    self._pop()  # attributes of an OrderedDict: version numbers
    if type(self._top()) is not dict:
      raise NotData("it gives attributes to something else than a dict")

  def storage(self, argument) -> None:
    kind, store, key, _, size = self._pop()
    if kind != "storage" or not isinstance(store, Name) or not isinstance(key, str) or not _is_count(size):
      raise NotData("it is damaged")
    self.stack.append(Storage(key, NAMES[store.module, store.name] or "", size))


def _tuple_of(count: int) -> Callable:
  def make(machine: _Machine, argument) -> None:
    machine.push(tuple(reversed([machine._pop() for _ in range(count)])))

  return make


def _called(callee: Name, arguments: tuple) -> Any:
  """What a call of one of the names gives."""
  if callee.name == "OrderedDict":
    if arguments:  # what is in it comes after it; a copy for each call would grow without bound
      raise NotData("it is damaged")
    return {}
  if callee.name == "Size":
    return _counts(arguments[0])
  if callee.name == "_rebuild_parameter":
    if not isinstance(arguments[0], Tensor):
      raise NotData("it is damaged")
    return arguments[0]
  if callee.name not in REBUILDS:
    raise NotData(f"it calls {callee}")
  storage, offset, shape, strides = arguments[:4]
  if not isinstance(storage, Storage) or not _is_count(offset):
    raise NotData("it is damaged")
  dtype = storage.dtype
  if callee.name == "_rebuild_tensor_v3":
    if not isinstance(arguments[6], Name):
      raise NotData("it is damaged")
    dtype = NAMES[arguments[6].module, arguments[6].name] or ""
  shape, strides = _counts(shape), _counts(strides)
  if not dtype or len(shape) != len(strides):
    raise NotData("it has a tensor without a type, or with a stride too many")
  return Tensor(storage, offset, shape, strides, dtype)


def _is_count(value) -> bool:
  return type(value) is int and 0 <= value < 1 << 62


def _counts(values) -> tuple[int, ...]:
  if type(values) is not tuple or len(values) > 16 or not all(map(_is_count, values)):
    raise NotData(f"it has the shape or strides {brief(str(type(values).__name__))} of no tensor")
  return values


REBUILDS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
# All that a pickle may name, and what dtype it stands for; "" one that is said elsewhere, None no type.
NAMES: dict[tuple[str, str], str | None] = {
  ("collections", "OrderedDict"): None,
  ("torch", "Size"): None,
  ("torch._utils", "_rebuild_parameter"): None,
  **{("torch._utils", name): None for name in REBUILDS},
  **{("torch", f"{name}Storage"): dtype for name, dtype in DTYPES.items()},
  **{("torch", dtype): dtype for dtype in DTYPES.values()},
  ("torch.storage", "UntypedStorage"): "",
}
OPERATIONS: dict[str, Callable] = {
  **dict.fromkeys(("PROTO", "FRAME", "STOP"), _Machine.nothing),
  **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE"), _Machine.push),
  **dict.fromkeys(("SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _Machine.push),
  "NONE": lambda machine, _: machine.push(None),
  "NEWTRUE": lambda machine, _: machine.push(True),
  "NEWFALSE": lambda machine, _: machine.push(False),
  "EMPTY_DICT": lambda machine, _: machine.push({}),
  "EMPTY_LIST": lambda machine, _: machine.push([]),
  "EMPTY_TUPLE": lambda machine, _: machine.push(()),
  "MARK": _Machine.mark,
  "POP": _Machine.pop,
  **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
  **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
  "MEMOIZE": _Machine.memoize,
  **{f"TUPLE{count}": _tuple_of(count) for count in (1, 2, 3)},
  "TUPLE": _Machine.group_tuple,
  "LIST": _Machine.group_list,
  "DICT": _Machine.group_dict,
  "APPEND": _Machine.append,
  "APPENDS": _Machine.appends,
  "SETITEM": _Machine.set_item,
  "SETITEMS": _Machine.set_items,
  "GLOBAL": _Machine.named,
  "STACK_GLOBAL": _Machine.stack_named,
  "REDUCE": _Machine.reduce,
  "BUILD": _Machine.build,
  "BINPERSID": _Machine.storage,
}
