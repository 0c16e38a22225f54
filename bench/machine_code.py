"""What a compiled kernel is made of: its innermost loop, what surrounds it, and which kinds of instruction they hold.

Read from SASS, the machine code of NVIDIA's chips, as cuobjdump prints it, or from AMD's assembly. A count says how
many instructions a warp issues in one turn, not how long they take: a table of counts is for comparing two versions of
a kernel.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

# Kinds of instruction by the start of their names, in NVIDIA's spelling and in AMD's.
KINDS = {
    "matrix": r"[HIQDO]G?MMA|UTC\w*MMA|v_s?mfma",
    "global_load": r"LDG\b|LDGSTS|LD\b|UTMALDG|UBLKCP|(?:global|buffer|flat)_load",
    "global_store": r"STG|ST\b|UTMASTG|RED\b|ATOMG?\b|(?:global|buffer|flat)_(?:store|atomic)",
    "shared_load": r"LDS|LDSM|LDTM|ds_read|ds_load",
    "shared_store": r"STS|STSM|STTM|ds_write|ds_store",
    "local": r"LDL|STL|scratch_",
    "convert": r"U?I2F|U?F2I|F2F|I2I|FRND|PRMT|v_cvt|v_perm",
    "special": r"MUFU|v_(?:exp|rcp|rsq|sqrt|log|sin|cos)_",
    "barrier": r"BAR\b|SYNCS|DEPBAR|LDGDEPBAR|MEMBAR|FENCE|WARPSYNC|WARPGROUP|UTMACMDFLUSH|s_barrier|s_waitcnt",
}
_KINDS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}
_SASS = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", re.MULTILINE)
_AMD = re.compile(r"^(?:(\.LBB\w+):|\s+([vs]_\w+|ds_\w+|(?:global|buffer|flat|scratch)_\w+)[ \t]*(\S*))", re.MULTILINE)
# Shorter loops wait for a barrier, or are the trap behind a kernel's end.
_SHORTEST = 8


class Code(NamedTuple):
    """A kernel's instructions in the order of their addresses, by number."""

    names: list[str]
    jumps: dict[int, int]  # from a branch to where it goes
    ends: set[int]  # instructions after which the next one does not follow

    @property
    def is_matrix(self) -> set[int]:
        """Instructions of a matrix unit."""
        return {i for i, name in enumerate(self.names) if _KINDS["matrix"].match(name)}


def read_sass(text: str) -> Code:
    """The code that `cuobjdump -sass` prints of one kernel."""
    found = _SASS.findall(text)
    place = {int(address, 16): i for i, (address, *_) in enumerate(found)}
    jumps, ends = {}, set()
    for i, (_, predicate, name, operands) in enumerate(found):
        target = re.search(r"0x[0-9a-f]+", operands) if name.startswith("BRA") else None
        if target is not None and int(target[0], 16) in place:
            jumps[i] = place[int(target[0], 16)]
        is_certain = not predicate and "P" not in operands and ".DIV" not in name
        if is_certain and (i in jumps or name.startswith(("EXIT", "RET"))):
            ends.add(i)
    return Code([name for *_, name, _ in found], jumps, ends)


def read_amd(text: str) -> Code:
    """The code of AMD's assembly."""
    names: list[str] = []
    place: dict[str, int] = {}
    operands = []
    for label, name, operand in _AMD.findall(text):
        if label:
            place[label] = len(names)
        else:
            names.append(name)
            operands.append(operand)
    branches = [i for i, name in enumerate(names) if name.startswith(("s_branch", "s_cbranch"))]
    jumps = {i: place[operands[i]] for i in branches if operands[i] in place}
    return Code(names, jumps, {i for i, name in enumerate(names) if name in ("s_branch", "s_endpgm")})


def describe(code: Code) -> dict[str, int]:
    """Counts of a kernel's instructions.

    Returns:
        instructions (of the whole kernel), inner (of the innermost loop with most matrix instructions; 0 without a
        loop), outer (of the loop around that one, without it; or what a loop that two loops became can skip: an
        epilogue; or all the rest), and inner_<kind> and outer_<kind> for each of KINDS.
    """
    every = loops(code)
    innermost = _busiest(code, every)
    rare = _skipped(code, innermost)
    inner = innermost - rare
    around = min((loop for loop in every if innermost < loop), key=len, default=rare or set(range(len(code.names))))
    outer = around - inner
    found = {"instructions": len(code.names), "inner": len(inner), "outer": len(outer)}
    for part, places in (("inner", inner), ("outer", outer)):
        names = [code.names[i] for i in places]
        found |= {f"{part}_{kind}": sum(bool(rule.match(name)) for name in names) for kind, rule in _KINDS.items()}
    return found


def _busiest(code: Code, every: list[set[int]]) -> set[int]:
    innermost = [loop for loop in every if not any(other < loop for other in every)]
    return max(innermost, key=lambda loop: (len(loop & code.is_matrix), len(loop)), default=set())


def _skipped(code: Code, loop: set[int]) -> set[int]:
    """Of a loop over matrix products, what a branch skips that holds none of them."""
    products = loop & code.is_matrix
    found: set[int] = set()
    for start, end in code.jumps.items():
        between = set(range(start + 1, end))
        if products and start in loop and start not in code.ends and len(between) >= _SHORTEST:
            found |= set() if between & products else between & loop
    return found


def loops(code: Code) -> list[set[int]]:
    """The natural loops: from a branch back to an instruction that every way to the branch goes through."""
    starts = sorted({0, *code.jumps.values(), *(i + 1 for i in {*code.jumps, *code.ends})} - {len(code.names)})
    blocks = {start: range(start, end) for start, end in pairwise([*starts, len(code.names)])}
    before: dict[int, set[int]] = {start: set() for start in blocks}
    for start, block in blocks.items():
        last = block[-1]
        after = [code.jumps[last]] if last in code.jumps else []
        after += [last + 1] if last not in code.ends and last + 1 in blocks else []
        for target in after:
            before[target].add(start)
    dominators = _dominators(before)
    found: dict[int, set[int]] = {}
    for head, sources in before.items():
        for source in sources:
            if head in dominators[source]:
                found.setdefault(head, {head}).update(_body(head, source, before))
    bodies = [{i for start in body for i in blocks[start]} for body in found.values()]
    return [body for body in bodies if len(body) >= _SHORTEST]


def _dominators(before: dict[int, set[int]]) -> dict[int, set[int]]:
    """For every block those that all ways to it go through; blocks that nothing leads to count as ways in."""
    found = {start: set(before) if sources and start else {start} for start, sources in before.items()}
    changed = True
    while changed:
        changed = False
        for start, sources in before.items():
            if sources and start:
                now = {start} | set.intersection(*(found[source] for source in sources))
                changed, found[start] = changed or now != found[start], now
    return found


def _body(head: int, source: int, before: dict[int, set[int]]) -> set[int]:
    body, todo = {head}, [source]
    while todo:
        block = todo.pop()
        if block not in body:
            body.add(block)
            todo += before[block]
    return body
