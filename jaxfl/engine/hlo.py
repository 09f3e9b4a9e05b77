"""What a compiled program does, read from its text: arithmetic, memory traffic and collectives, loops unrolled.

Loops count as often as XLA has proven that they turn, one branch of a choice counts, and what is read or written by
slices or rows counts as these, not as the whole array.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
WIDTH = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id", "after-all", "")
MOVES = ("broadcast", "reshape", "slice", "dynamic-slice", "dynamic-update-slice", "iota", "copy", "concatenate", "pad")
# Elementwise operations that cost more than an addition, in additions (measured on a CPU with AVX-512).
DEAR = {"exponential": 32, "log": 35, "tanh": 30, "logistic": 38, "power": 70, "divide": 6, "sqrt": 11, "rsqrt": 15}
DEAR |= {"cosine": 60, "sine": 60, "erf": 30, "exponential-minus-one": 45, "log-plus-one": 50, "remainder": 12}
DEAR |= {"transpose": 60, "reverse": 60, "gather": 10, "scatter": 10, "reduce": 6, "reduce-window": 12}
SORT = 500  # a compared pair
HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
KIND = re.compile(r"(?:^|[\s)\]}])([a-z][\w\-]*)\(")
SHAPE = re.compile(r"\b(pred|[suf]\d+|bf16)\[([\d,]*)\]")


class Dot(NamedTuple):
    """A product of `batch` pairs of matrices, `[m, k] @ [k, n]`."""

    batch: int
    m: int
    k: int
    n: int

    @property
    def flops(self) -> float:
        """Products and sums."""
        return 2.0 * self.batch * self.m * self.k * self.n


class Work(NamedTuple):
    """An instruction that is started `times` times: what it moves and computes each time."""

    kind: str
    times: float
    bytes: float
    operations: float  # elementwise, in additions
    dot: Dot | None
    small: bool  # part of a larger kernel, so that it is not started by itself
    exchanged: float  # bytes of the result of a collective


class Line(NamedTuple):
    """One instruction of the text."""

    name: str
    kind: str
    shapes: tuple[tuple[int, tuple[int, ...]], ...]  # of the result: bytes an element, lengths of the axes
    operands: tuple[str, ...]
    text: str

    @property
    def elements(self) -> int:
        """Elements of the largest part of the result."""
        return max((math.prod(dims) for _, dims in self.shapes), default=0)

    @property
    def bytes(self) -> float:
        """Bytes of the result."""
        return float(sum(width * math.prod(dims) for width, dims in self.shapes))


Program = Mapping[str, Mapping[str, Line]]


def parse(text: str) -> tuple[Program, str]:
    """The computations of a program, their instructions by name, and the name of the first computation."""
    parts: dict[str, dict[str, Line]] = {}
    entry = name = ""
    for raw in text.splitlines():
        head = HEAD.match(raw)
        if head:
            name = head[2]
            parts[name] = {}
            entry = name if head[1] else entry
        elif name and " = " in raw:
            line = _line(raw)
            parts[name][line.name] = line
    return parts, entry


def _line(raw: str) -> Line:
    what, right = re.sub(r"/\*.*?\*/", "", raw).split(" = ", 1)
    op = KIND.search(right)
    kind = op[1] if op else ""
    head, _, rest = right.partition(f"{kind}(")
    shapes = tuple((WIDTH.get(t, 4), tuple(map(int, filter(None, d.split(","))))) for t, d in SHAPE.findall(head))
    used = tuple(re.findall(r"%([\w.\-]+)", rest.split(")")[0]))
    return Line(what.strip().removeprefix("ROOT ").lstrip("%"), kind, shapes, used, right)


def works(text: str) -> list[Work]:
    """Everything a compiled program starts."""
    parts, entry = parse(text)
    return list(_walk(parts, entry, 1.0, False))


def _called(line: Line, *names: str) -> list[str]:
    return [c for name in names for c in re.findall(rf"\b{name}=%?([\w.\-]+)", line.text)]


def _walk(parts: Program, name: str, times: float, small: bool) -> Iterator[Work]:
    here = parts.get(name, {})
    for line in here.values():
        if line.kind == "while":
            trips = re.search(r"known_trip_count\W+n\W+(\d+)", line.text)
            often = times * (int(trips[1]) if trips else 1)
            for inner in _called(line, "body", "condition"):
                yield from _walk(parts, inner, often, small)
        elif line.kind == "conditional":
            branches = [list(_walk(parts, b, times, small)) for b in _branches(line)]
            yield from max(branches, key=lambda b: sum(w.bytes * w.times for w in b), default=[])
        elif line.kind in ("call", "async-start"):
            within = small or "xla_cpu_small_call" in line.text
            for inner in _called(line, "to_apply", "calls")[:1]:
                yield from _walk(parts, inner, times, within)
        elif line.kind not in FREE:
            yield _work(parts, here, line, times, small)


def _branches(line: Line) -> list[str]:
    listed = re.search(r"branch_computations=\{(.*?)\}", line.text)
    return re.findall(r"%?([\w.\-]+)", listed[1]) if listed else _called(line, "true_computation", "false_computation")


def _work(parts: Program, here: Mapping[str, Line], line: Line, times: float, small: bool) -> Work:
    inner = parts.get(next(iter(_called(line, "calls")), ""), {}) if line.kind == "fusion" else {}
    lines = inner or {line.name: line}
    around = inner or here
    dots = [_dot(around, a) for a in lines.values() if a.kind == "dot"]
    moved = _fused_bytes(here, line, inner) if inner else _bytes(here, line)
    operations = sum(_operations(parts, around, a) for a in lines.values())
    exchanged = line.bytes if line.kind.removesuffix("-start") in COLLECTIVES else 0.0
    return Work(line.kind, times, moved, operations, dots[0] if dots else None, small, exchanged)


def _read(users: list[Line], name: str, whole: float) -> float:
    """Bytes read of the array `name`: the parts taken if all its users take parts of it."""
    total = 0.0
    for user in users:
        if user.kind in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
            total += user.bytes
        elif not (user.kind in ("dynamic-update-slice", "scatter") and user.operands[0] == name):
            return whole
    return min(total, whole)


def _bytes(here: Mapping[str, Line], line: Line) -> float:
    """Bytes an instruction that is not fused reads and writes."""
    size = {name: here[name].bytes for name in line.operands if name in here}
    if line.kind in ("dynamic-update-slice", "scatter"):
        return 2 * sum(size.get(name, 0.0) for name in line.operands[1:])
    return line.bytes + sum(_read([line], name, whole) for name, whole in size.items())


def _fused_bytes(here: Mapping[str, Line], line: Line, inner: Mapping[str, Line]) -> float:
    """Bytes a fusion reads and writes: only its parameters and results exist in memory."""
    followed = dict.fromkeys(inner, "")
    for a in inner.values():  # a bitcast is the array it is made of
        followed[a.name] = followed[a.operands[0]] if a.kind == "bitcast" and a.operands else a.name
    users: dict[str, list[Line]] = {name: [] for name in inner}
    for a in inner.values():
        if a.kind != "bitcast":
            for name in a.operands:
                if name in followed:
                    users[followed[name]].append(a._replace(operands=tuple(followed.get(o, o) for o in a.operands)))
    read = sum(_read(users[a.name], a.name, a.bytes) for a in inner.values() if a.kind == "parameter")
    root = list(inner.values())[-1]
    written = 0.0
    for name in root.operands if root.kind == "tuple" else (root.name,):
        a = inner.get(followed.get(name, name), root)
        if a.kind in ("dynamic-update-slice", "scatter"):  # in place: only the update is written
            a = inner.get(followed.get(a.operands[1 if a.kind == "dynamic-update-slice" else -1], ""), a)
        written += a.bytes
    return read + written


def _dot(around: Mapping[str, Line], line: Line) -> Dot:
    left = around[line.operands[0]].shapes[0][1] if line.operands[0] in around else ()
    axes = {what: re.search(rf"lhs_{what}_dims=\{{([\d,]*)\}}", line.text) for what in ("contracting", "batch")}
    k, batch = (
        math.prod(left[int(i)] for i in re.findall(r"\d+", found[1] if found else "")) for found in axes.values()
    )
    m = math.prod(left) // max(1, k * batch)
    return Dot(batch, m, k, line.elements // max(1, batch * m))


def _operations(parts: Program, around: Mapping[str, Line], line: Line) -> float:
    """Elementwise operations of an instruction, in additions."""
    if line.kind in FREE or line.kind in MOVES or line.kind == "dot" or line.kind in COLLECTIVES:
        return 0.0
    if line.kind in ("reduce", "reduce-window", "scatter"):
        first = around.get(line.operands[-1 if line.kind == "scatter" else 0])
        size = first.elements if first else line.elements
        window = re.search(r"window=\{size=([\dx]+)", line.text)
        if line.kind == "reduce-window" and window:
            size = max(size, line.elements * math.prod(map(int, window[1].split("x"))))
        return float(DEAR[line.kind] * size)
    if line.kind == "sort":
        return SORT * line.elements * max(1.0, math.log2(max(line.shapes[0][1], default=2)))
    return float(DEAR.get(line.kind, 1) * line.elements)


class Counts(NamedTuple):
    """Totals of a compiled program."""

    bytes: float
    collective_bytes: float
    instructions: float
    collectives: Mapping[str, int]


def counts(text: str) -> Counts:
    """Totals over the text of a compiled program."""
    found, met = [w for w in works(text) if not w.kind.endswith("-done")], Counter()
    for w in found:
        if w.exchanged:
            met[w.kind.removesuffix("-start")] += int(w.times)
    return Counts(
        bytes=sum(w.times * w.bytes for w in found),
        collective_bytes=sum(w.times * w.exchanged for w in found),
        instructions=sum(w.times for w in found if not w.small),
        collectives=dict(met),
    )
