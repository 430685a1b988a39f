"""What a compiled program sends between chips, read out of its text: opcodes, replica groups, trip counts of loops."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*)$")
_OPCODE = re.compile(r" ([a-z][a-z0-9-]*)\(")
_SHAPE = re.compile(r"\b(pred|token|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|called_computations|branch_computations)=\{?((?:%[\w.-]+(?:, ?)?)+)")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One instruction. `size`: bytes of the whole array on one chip (what is gathered, summed or sent); `group`: chips
  that take part; `times`: how often a step runs it.
  """

  kind: str
  size: int
  group: int
  times: int

  @property
  def sent(self) -> float:
    """Bytes that each chip receives for it by ring algorithms, all times together."""
    share = (self.group - 1) / self.group
    factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
    return self.times * self.size * factor


def collectives(text: str, rounds: int = 0) -> list[Collective]:
  """All collectives of a program text as `compiled.as_text()` gives it; `rounds`: of loops whose length is data.

  Raises:
    ValueError: a text without an entry, or a loop whose number of rounds it does not tell.
  """
  bodies, entry = _computations(text)
  found: list[Collective] = []

  def walk(name: str, times: int) -> None:
    for opcode, result, rest in _instructions(bodies.get(name, ())):
      kind = opcode.removesuffix("-start")
      if kind in KINDS:
        group = _group(rest)
        if kind == "collective-permute" or group > 1:
          found.append(Collective(kind, _bytes(kind, opcode, result, group), group, times))
      trips = _trips(bodies, rest, rounds) if opcode == "while" else 1
      for called in _CALLED.findall(rest) if kind not in KINDS else ():
        for other in re.findall(r"%([\w.-]+)", called):
          walk(other, times * trips)

  walk(entry, 1)
  return found


def by_kind(found: list[Collective]) -> dict[str, dict[str, float]]:
  """{kind: {"instructions", "times", "bytes"}}: bytes are those that each chip receives in one run."""
  out = {}
  for kind in KINDS:
    some = [c for c in found if c.kind == kind]
    if some:
      times = sum(c.times for c in some)
      out[kind] = dict(instructions=len(some), times=times, bytes=round(sum(c.sent for c in some)))
  return out


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  bodies, entry, name = {}, None, None
  for line in text.splitlines():
    if head := _HEAD.match(line):
      name = head[2]
      bodies[name] = []
      entry = name if head[1] else entry
    elif name is not None and line.startswith(" "):
      bodies[name].append(line)
  if entry is None:
    raise ValueError("this is no program text: it has no ENTRY.")
  return bodies, entry


def _instructions(lines) -> Iterator[tuple[str, str, str]]:
  """(opcode, result type, what follows) of each."""
  for line in lines:
    if (match := _LINE.match(line)) and (opcode := _OPCODE.search(" " + match[2])):
      at = opcode.start() - 1
      yield opcode[1], match[2][: max(at, 0)], match[2][at + 1 :]


def _bytes(kind: str, opcode: str, result: str, group: int) -> int:
  sizes = [_size(*shape) for shape in _SHAPE.findall(result)]
  if opcode.endswith("-start") and kind in ("all-gather", "collective-permute", "all-to-all"):
    return max(sizes)  # (operand, result, ...)
  return sum(sizes) * (group if kind == "reduce-scatter" else 1)


def _size(dtype: str, dims: str) -> int:
  count = 1
  for n in filter(None, dims.split(",")):
    count *= int(n)
  bits = 8 if dtype == "pred" else int(re.sub(r"^[a-z]+(\d+).*$", r"\1", dtype)) if dtype != "token" else 0
  return count * bits // 8


def _group(rest: str) -> int:
  """How many chips a replica group has, in any of the three ways it is written."""
  if named := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest):
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
    group = 1
    for name in re.findall(r"'([^']+)'", named[2]):
      group *= sizes[name]
    return group
  if iota := re.search(r"replica_groups=\[([\d,]+)\]<=", rest):
    return int(iota[1].split(",")[-1])
  if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
    return len(listed[1].split(","))
  return 1


def _trips(bodies, rest: str, otherwise: int) -> int:
  if known := re.search(r'known_trip_count[\\":{ ]+n[\\": ]+(\d+)', rest):
    return int(known[1])
  condition = re.search(r"condition=%?([\w.-]+)", rest)
  lines = "\n".join(bodies.get(condition[1], ())) if condition else ""
  compare = re.search(r"compare\(([^)]*)\), direction=(LT|GT|NE)", lines)
  constants = dict(re.findall(r"%([\w.-]+) = s32\[\]\S* constant\((\d+)\)", lines))
  found = [int(constants[n]) for n in re.findall(r"%([\w.-]+)", compare[1]) if n in constants] if compare else []
  if len(found) != 1 and otherwise:
    return otherwise
  if len(found) != 1:
    raise ValueError(f"the loop with condition {condition and condition[1]} does not tell how often it runs.")
  return found[0]
