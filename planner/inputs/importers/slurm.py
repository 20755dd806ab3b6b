"""Slurm's `topology.conf` and the output of `scontrol show topology`: which nodes share a switch or a block."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final

from planner.errors import InputError, Place, Problem, ProblemLog

_FIELD: Final = re.compile(r"(\w+)=(\S*)")
_KEYS: Final = frozenset(
    {"switchname", "switches", "nodes", "linkspeed", "level", "blockname", "blocksizes", "blockindex", "blocksize"}
    | {"aggregatedblock"}
)
_HEAD: Final = re.compile(r"^\s*(SwitchName|BlockName)=", re.IGNORECASE | re.MULTILINE)
_PIECE: Final = re.compile(r"[\w.-]+|\[[^\[\]]*\]")
_RANGE: Final = re.compile(r"(\d+)(?:-(\d+))?")
_LIMIT_NODES: Final = 1 << 16
_LIMIT_DEPTH: Final = 16
_EXAMPLE: Final = "expected lines such as SwitchName=leaf1 Nodes=node[01-16] or BlockName=b1 Nodes=node[01-18]"
_HOSTS: Final = "expected names such as node[01-16],login1"


@dataclass(frozen=True)
class Groups:
    """Nodes by leaf switch or block."""

    kind: str
    """"switch" or "block"."""
    members: dict[str, tuple[str, ...]]
    """Leaf switch or block -> its nodes, in the order of the tree."""
    tiers: tuple[tuple[int, ...], ...]
    """Nodes under each switch above the leaves, tier by tier, the lowest first; none for blocks."""
    places: dict[str, Place]
    """Leaf switch or block -> where its name stands."""
    unread: tuple[str, ...]
    """Keys of the file that mean nothing here."""

    @property
    def num_nodes(self) -> int:
        """Nodes of all groups."""
        return sum(len(nodes) for nodes in self.members.values())


@dataclass(frozen=True)
class _Entry:
    kind: str
    name: str
    nodes: tuple[str, ...]
    children: tuple[str, ...]
    where: Place


def looks_like(text: str) -> bool:
    """Whether a text has lines of switches or blocks."""
    return _HEAD.search(text) is not None


def read_groups(text: str, file: str) -> Groups:
    """Read switches or blocks.

    Raises:
        InputError: all problems, each with line and column.
    """
    log = ProblemLog()
    unread: set[str] = set()
    entries: list[_Entry] = []
    for number, line in _joined(text):
        entry = _entry(line, Place(file, number, 1), log, unread)
        if entry is not None:
            entries.append(entry)
    if not entries and not log.problems:
        raise InputError(Problem("no switch and no block", Place(file, 1, 1), _EXAMPLE))
    _check(entries, log)
    log.raise_if_any()
    known = {entry.name: entry for entry in entries}
    leaves, tiers = _tree(known)
    members = {name: known[name].nodes for name in leaves}
    places = {name: known[name].where for name in leaves}
    return Groups(entries[0].kind, members, tiers, places, tuple(sorted(unread)))


def _joined(text: str) -> Iterator[tuple[int, str]]:
    """Lines without comments, those that end in a backslash joined to the next; each with its first number."""
    start, parts = 1, ""
    for number, line in enumerate(text.splitlines(), 1):
        plain = line.split("#", 1)[0].rstrip()
        start = start if parts else number
        if plain.endswith("\\"):
            # A list may go on in the middle, as in `Nodes=a,\` and `b`.
            parts += plain[:-1] if plain[:-1].endswith(",") else plain[:-1] + " "
            continue
        yield start, parts + (plain.lstrip() if parts.endswith(",") else plain)
        parts = ""
    if parts:
        yield start, parts


def _tree(known: dict[str, _Entry]) -> tuple[list[str], tuple[tuple[int, ...], ...]]:
    """Leaves as the tree orders them, and the nodes under each switch, tier by tier above the leaves."""
    below = {child for entry in known.values() for child in entry.children}
    leaves: list[str] = []
    tiers: list[list[int]] = []

    def visit(name: str) -> tuple[int, int]:
        """Height over the leaves, and nodes."""
        entry = known[name]
        if not entry.children:
            leaves.append(name)
            return 0, len(entry.nodes)
        inner = [visit(child) for child in entry.children]
        height, nodes = 1 + max(height for height, _ in inner), sum(nodes for _, nodes in inner)
        tiers.extend([] for _ in range(height - len(tiers)))
        tiers[height - 1].append(nodes)
        return height, nodes

    for name in known:
        if name not in below:
            visit(name)
    return leaves, tuple(map(tuple, tiers))


def _entry(line: str, start: Place, log: ProblemLog, unread: set[str]) -> _Entry | None:
    if not line.strip():
        return None
    fields: dict[str, tuple[str, Place]] = {}
    for match in _FIELD.finditer(line):
        key = match[1].lower()
        fields[key] = (match[2].replace("(null)", ""), Place(start.file, start.line, match.start(2) + 1))
        if key not in _KEYS:
            unread.add(match[1])
    kind = next((kind for kind in ("switch", "block") if f"{kind}name" in fields), None)
    if kind is None:
        if "aggregatedblock" in fields:  # what BlockSizes says once more
            return None
        if not fields or fields.keys() & {"nodes", "switches"}:
            log.add(f"not a line of a switch or block: {line.strip()[:60]!r}", where=start, hint=_EXAMPLE)
        return None
    name, where = fields[f"{kind}name"]
    nodes = _expanded(*fields.get("nodes", ("", where)), log)
    children = _expanded(*fields.get("switches", ("", where)), log)
    if (
        not nodes
        and not children
        and not any(problem.where and problem.where.line == start.line for problem in log.problems)
    ):
        log.add(f"{kind} {name!r} has no nodes", where=where, hint=_EXAMPLE)
    return _Entry(kind, name, nodes, children, where)


def _expanded(text: str, where: Place, log: ProblemLog) -> tuple[str, ...]:
    """The names of a host list: `a[01-03,7],b` is a01 a02 a03 a7 b."""
    names: list[str] = []
    if text == "ALL":
        log.add("'ALL' does not tell how many nodes there are", where=where, hint=_HOSTS)
        return ()
    for item in re.split(r",(?![^\[]*\])", text) if text else []:
        pieces = _PIECE.findall(item)
        if not item or "".join(pieces) != item:
            log.add(f"{item!r} is not a host list", where=where, hint=_HOSTS)
            return ()
        choices = [_numbers(piece[1:-1]) if piece.startswith("[") else [piece] for piece in pieces]
        size = 1
        for choice in choices:
            size *= len(choice)
        if not 0 < size <= _LIMIT_NODES - len(names):
            rule = "a range runs from low to high" if not size else f"at most {_LIMIT_NODES:,} nodes are planned"
            log.add(f"{item!r} is not a host list: {rule}", where=where, hint=_HOSTS)
            return ()
        names += ["".join(parts) for parts in product(*choices)]
    counts = Counter(names)
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        log.add(f"{twice!r} stands twice in a host list", where=where, hint="name it once, in one range")
    return tuple(counts)


def _numbers(text: str) -> list[str]:
    """The numbers of `01-03,7`, zeros kept; empty if anything is wrong."""
    found: list[str] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            return []
        first, last = match[1], match[2] or match[1]
        if not int(first) <= int(last) < int(first) + _LIMIT_NODES:
            return []
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return found


def _check(entries: list[_Entry], log: ProblemLog) -> None:
    """Names once, children known, one kind, each node in one leaf."""
    known: dict[str, _Entry] = {}
    home: dict[str, _Entry] = {}
    for entry in entries:
        if entry.name in known:
            first = known[entry.name].where.line
            log.add(f"{entry.kind} {entry.name!r} stands twice", where=entry.where, hint=f"first on line {first}")
        if entry.kind != entries[0].kind:
            hint = "a file describes a tree of switches or blocks, not both"
            log.add(f"{entry.kind} {entry.name!r} beside a {entries[0].kind}", where=entry.where, hint=hint)
        known.setdefault(entry.name, entry)
        for node in () if entry.children else entry.nodes:
            other = home.setdefault(node, entry)
            if other is not entry:
                hint = f"it also stands under {other.name!r} on line {other.where.line}: keep one"
                log.add(f"node {node!r} under {entry.kind} {entry.name!r}", where=entry.where, hint=hint)
                break
    for entry in entries:
        for child in entry.children:
            if child not in known:
                hint = f"known: {', '.join(list(known)[:10])}"
                log.add(f"switch {entry.name!r} names {child!r}, which no line defines", where=entry.where, hint=hint)
    _check_tree(entries, log)


def _check_tree(entries: list[_Entry], log: ProblemLog) -> None:
    """Each switch under one other, none under itself, and not too deep to follow."""
    parent: dict[str, _Entry] = {}
    for entry in entries:
        for child in entry.children:
            other = parent.setdefault(child, entry)
            if other is not entry:
                hint = f"it also stands under {other.name!r} on line {other.where.line}: keep one"
                log.add(f"switch {child!r} under switch {entry.name!r}", where=entry.where, hint=hint)
    above = {entry.name: _above(entry.name, parent) for entry in entries}
    for entry in entries:
        if entry.name in above[entry.name]:
            hint = f"it stands under {parent[entry.name].name!r}, which leads back to it"
            log.add(f"switch {entry.name!r} stands under itself", where=entry.where, hint=hint)
            return
    for entry in entries:
        if len(above[entry.name]) > _LIMIT_DEPTH:
            hint = f"at most {_LIMIT_DEPTH} are read"
            log.add(f"switch {entry.name!r} has too many switches above it", where=entry.where, hint=hint)
            return


def _above(name: str, parent: dict[str, _Entry]) -> list[str]:
    """The switches above one, to the top, or so many that it is too deep."""
    found: list[str] = []
    while name in parent and len(found) <= _LIMIT_DEPTH:
        name = parent[name].name
        found.append(name)
    return found
