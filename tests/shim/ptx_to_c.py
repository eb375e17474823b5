#!/usr/bin/env python3
"""PTX to C, for tests/shim: what nvcc made of the kernels, run on the CPU by the fibres that also run their sources.

    ptx_to_c.py kernels.ptx >kernels.c      (compiled with tests/shim/ptx.h, which says what the instructions do)

Every register is a local variable, every instruction a block `{ operands a, b, c...; result = ...; }`, every branch a goto. OPCODES
is the table of what is known, modifiers and all; anything else ends the translation with its name and line. Source: NVIDIA's "Parallel
Thread Execution ISA", version 9.0: state spaces and types, and the instructions in the order of its chapter.
"""

import re
import sys
from bisect import bisect_right
from typing import NamedTuple

C_TYPES = {"pred": "bool", "f32": "float", "f64": "double"} | {
    f"{kind}{bits}": f"{'' if kind == 's' else 'u'}int{bits}_t" for kind in "sub" for bits in (8, 16, 32, 64)}
INTEGERS = [f"{kind}{bits}" for kind in "su" for bits in (16, 32, 64)]
UNTYPED = ["b16", "b32", "b64"]
ALL = [*INTEGERS, *UNTYPED, "f32", "f64"]
SPECIAL = {"%tid.x": "shim_thread", "%ctaid.x": "shim_block", "%nctaid.x": "shim_blocks"}
UNSET = {"bool": "true", "float": "NAN", "double": "NAN"}  # registers before they are written; whole numbers: all bits
PRAGMAS = re.compile(r'\.pragma "(nounroll|used_bytes_mask \d+)"')


class Refused(Exception):
    """What cannot be translated, and where."""


class Row(NamedTuple):
    """An opcode. Types of its result and operands: "f32", "b32x4" (a vector), "@shared.16" (an address in that space, of 16 bytes), "#"
    (a whole number, as it stands). In `c` operands are called a, b, c...; a vector's result is the array r, other results the value."""
    result: str
    operands: list
    c: str


OPCODES = {}


def add(names, types, signature, c):
    """Rows of one meaning. T stands for each of `types`, also in the signature "result: operands", and in C for C's type."""
    result, operands = signature.split(":")
    for name in names.split():
        for t in types or [""]:
            OPCODES[name.replace("T", t)] = Row(result.strip().replace("T", t), operands.replace("T", t).split(),
                                                re.sub(r"\bT\b", C_TYPES.get(t, t), c))


# Integer arithmetic. Registers are unsigned; what is signed is cast where it is read. -fwrapv: all of it is modulo 2^n.
for op, sign in (("add", "+"), ("sub", "-"), ("mul.lo", "*")):
    add(f"{op}.T", INTEGERS, "T: T T", f"a {sign} b")
# By zero: something, but no end of the program; nvcc moves divisions to before what would leave them out.
for op, sign, by_minus_one in (("div", "/", "-a"), ("rem", "%", "0")):
    add(f"{op}.T", [t for t in INTEGERS if t[0] == "u"], "T: T T", f"b == 0 ? (T)-1 : a {sign} b")
    add(f"{op}.T", [t for t in INTEGERS if t[0] == "s"], "T: T T", f"b == 0 ? -1 : b == -1 ? {by_minus_one} : a {sign} b")
for half, whole in (("s16", "s32"), ("u16", "u32"), ("s32", "s64"), ("u32", "u64")):
    add("mul.wide.T", [half], f"{whole}: T T", f"({C_TYPES[whole]})a * b")
    add("mul.hi.T", [half], "T: T T", f"(T)((({C_TYPES[whole]})a * b) >> {half[1:]})")
add("mad.lo.T", INTEGERS, "T: T T T", "a * b + c")
add("neg.T", ["s16", "s32", "s64"], "T: T", "-a")
add("min.T", INTEGERS, "T: T T", "a < b ? a : b")
add("max.T", INTEGERS, "T: T T", "a > b ? a : b")
add("popc.b32", [], "u32: b32", "(uint32_t)__builtin_popcount(a)")
add("bfi.b32", [], "b32: b32 b32 u32 u32", "(uint32_t)ptx_bfi(a, b, c, d, 32)")
add("bfi.b64", [], "b64: b64 b64 u32 u32", "ptx_bfi(a, b, c, d, 64)")
add("bfe.s32", [], "s32: s32 u32 u32", "ptx_bfe(a, b, c)")
# Floating point. What nvcc leaves to the card (.approx) may be off by what the manual says: see ptx.c.
for op, sign in (("add", "+"), ("sub", "-"), ("mul", "*"), ("div", "/")):
    add(f"{op}.rn.T", ["f32", "f64"], "T: T T", f"a {sign} b")
add("fma.rn.f32", [], "f32: f32 f32 f32", "fmaf(a, b, c)")
add("add.rz.f32", [], "f32: f32 f32", "ptx_add_to_zero(a, b)")
add("fma.rm.f32", [], "f32: f32 f32 f32", "ptx_fma_down(a, b, c)")
add("fma.rn.bf16x2", [], "b32: b32 b32 b32", "ptx_fma_bf16x2(a, b, c)")
add("sqrt.rn.f32", [], "f32: f32", "sqrtf(a)")
add("neg.f32", [], "f32: f32", "-a")
add("abs.f32", [], "f32: f32", "fabsf(a)")
add("min.f32", [], "f32: f32 f32", "ptx_min(a, b)")
add("max.f32", [], "f32: f32 f32", "ptx_max(a, b)")
add("div.approx.f32", [], "f32: f32 f32", "ptx_div_approx(a, b)")
for op in ("rcp.approx.ftz", "rsqrt.approx", "ex2.approx.ftz"):
    add(f"{op}.f32", [], "f32: f32", f"ptx_{op.replace('.', '_')}(a)")
# Comparison and selection: a number that is none makes `ne` false too, and all that end in u true.
for op, c in (("eq", "a == b"), ("ne", "a != b"), ("lt", "a < b"), ("le", "a <= b"), ("gt", "a > b"), ("ge", "a >= b")):
    add(f"setp.{op}.T", INTEGERS + (UNTYPED if op in ("eq", "ne") else []), "pred: T T", c)
    add(f"setp.{op}.T", ["f32", "f64"], "pred: T T", "a < b || a > b" if op == "ne" else c)
    inverse = {"eq": "a < b || a > b", "ne": "a == b", "lt": "a >= b", "le": "a > b", "gt": "a <= b", "ge": "a < b"}[op]
    add(f"setp.{op}u.T", ["f32", "f64"], "pred: T T", f"!({inverse})")
add("selp.T", ALL, "T: T T pred", "c ? a : b")
# Logic and shift: too far is not undefined, but all bits gone.
for op, sign in (("and", "&"), ("or", "|"), ("xor", "^")):
    add(f"{op}.T", ["pred", *UNTYPED], "T: T T", f"a {sign} b")
add("not.pred", [], "pred: pred", "!a")
add("not.T", UNTYPED, "T: T", "~a")
add("shl.T", UNTYPED, "T: T u32", "b < 8 * sizeof a ? (T)(a << b) : 0")
add("shr.T", [*UNTYPED, "u16", "u32", "u64"], "T: T u32", "b < 8 * sizeof a ? a >> b : 0")
add("shr.T", ["s16", "s32", "s64"], "T: T u32", "a >> (b < 8 * sizeof a ? b : 8 * sizeof a - 1)")
for side, place in (("l", "<< (c & 31) >> 32"), ("r", ">> (c & 31)")):
    add(f"shf.{side}.wrap.b32", [], "b32: b32 b32 b32", f"(uint32_t)(((uint64_t)b << 32 | a) {place})")
# Data movement and conversion: values, addresses, memory. `mov` is Kernel.move. An address of a cvta.to.global is one already.
add("cvta.to.global.u64", [], "u64: u64", "a")
add("prmt.b32", [], "b32: b32 b32 b32", "ptx_prmt(a, b, c)")
for t in [*ALL, "s8", "u8", "b8"]:
    for n, vector in ((1, ""), (2, ".v2"), (4, ".v4")):
        size = n * int(t[1:]) // 8
        # "constant": of the path of weights. An address without a space is one in global memory here: nothing makes others of it.
        for space, names in {"global": "ld.global ld", "shared": "ld.shared", "param": "ld.param", "local": "ld.local",
                             "constant": "ld.global.nc ld.global.nc.L1::no_allocate"}.items():
            add(" ".join(f"{name}{vector}.T" for name in names.split()), [t], f"Tx{n}: @{space}.{size}", "memcpy(r, a, sizeof r)")
        for space, function in (("global", "stored"), ("shared", "shared"), ("local", "local")):
            add(f"st.{space}{vector}.T", [t], f": @{function}.{size} Tx{n}", "memcpy(a, b, sizeof b)")
add("ld.acquire.gpu.global.u32", [], "u32: @global.4", "*(const volatile uint32_t *)a")
add("nanosleep.u32", [], ": u32", "(void)a; shim_sleep()")
add("prefetch.global.L2", [], ": @hint.1", "(void)a")
add("cp.async.cg.shared.global", [], ": @shared.16 @global.16 #", "_Static_assert(c == 16, \"bytes\"); shim_copy(a, b)")
add("cp.async.commit_group", [], ":", "shim_copy_commit()")
add("cp.async.wait_group", [], ": #", "shim_copy_wait(a)")
# cvt: a register may be wider than the type that is read from it or written to it.
for t in [*INTEGERS, "s8", "u8"]:
    add(f"cvt.{t}.T", [*INTEGERS, "s8", "u8"], f"{t}: T", "a")
    add(f"cvt.rn.T.{t}", ["f32", "f64"], f"T: {t}", "(T)a")
for t in ("s32", "u32", "s64", "u64"):
    for wide in ("f32", "f64"):
        limits = (f"-0x1p{int(t[1:]) - 1}", f"0x1p{int(t[1:]) - 1}") if t[0] == "s" else ("0", f"0x1p{t[1:]}")
        none = "0" if (t[1:], wide) == ("32", "f32") else f"({C_TYPES[t]})(1ull << {int(t[1:]) - 1})"
        top = "INT" if t[0] == "s" else "UINT"
        low = f"INT{t[1:]}_MIN" if t[0] == "s" else "0"
        add(f"cvt.rzi.{t}.{wide}", [], f"{t}: {wide}", f"a != a ? {none} : a <= {limits[0]} ? {low} : a >= {limits[1]} ? "
            f"{top}{t[1:]}_MAX : ({C_TYPES[t]})a")
add("cvt.f64.f32", [], "f64: f32", "(double)a")
add("cvt.rni.f32.f32", [], "f32: f32", "rintf(a)")
add("cvt.rpi.f64.f64", [], "f64: f64", "ceil(a)")
add("cvt.sat.f32.f32", [], "f32: f32", "a > 0 ? a < 1 ? a : 1 : 0")
add("cvt.f32.f16", [], "f32: b16", "ptx_half(a)")
add("cvt.rn.bf16x2.f32", [], "b32: f32 f32", "(uint32_t)ptx_bf16(a) << 16 | ptx_bf16(b)")
# Control flow is Kernel.instruction's. Synchronization: barriers, fences, atomic operations, early beginnings.
add("bar.sync", [], ": #", "_Static_assert(a == 0, \"barrier\"); ptx_barrier(PTX_HERE)")
add("bar.warp.sync", [], ": b32", "ptx_warp_barrier(PTX_HERE, a)")
add("membar.gl", [], ":", "shim_fence()")
for space in ("global", "shared"):
    for t in ("u32", "u64"):
        place = f"T: @{'stored' if space == 'global' else 'shared'}.{int(t[1:]) // 8} T"
        add(f"atom.{space}.add.T", [t], place, "({ T old = *(T *)a; *(T *)a = old + b; old; })")
        add(f"atom.{space}.min.T", [t], place, "({ T old = *(T *)a; *(T *)a = b < old ? b : old; old; })")
add("griddepcontrol.launch_dependents", [], ":", "(void)0")
add("griddepcontrol.wait", [], ":", "place.waited = true")
for op in ("up", "bfly"):
    add(f"shfl.sync.{op}.b32", [], "b32: b32 b32 b32 b32", f"ptx_shuffle(PTX_HERE, PTX_{op.upper()}, a, b, c, d)")
# Matrices of a warp.
add("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", [], "f32x4: b32x4 b32x2 f32x4", "ptx_mma_bf16(PTX_HERE, r, a, b, c)")
add("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32", [], "f32x4: b32x4 b32x2 f32x4", "ptx_mma_e4m3(PTX_HERE, r, a, b, c)")
add("ldmatrix.sync.aligned.m8n8.x4.shared.b16", [], "b32x4: @shared.16", "ptx_ldmatrix(PTX_HERE, false, r, a)")
add("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", [], "b32x4: @shared.16", "ptx_ldmatrix(PTX_HERE, true, r, a)")
add("movmatrix.sync.aligned.m8n8.trans.b16", [], "b32: b32", "ptx_movmatrix(PTX_HERE, a)")


def split(text, brackets="{["):
    """Operands: at commas that are in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in brackets) - (letter in "}]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def c_name(register):
    return "_" + register.removeprefix("%")


def width(t):
    return int(t[1:]) if t != "pred" else 1


def convert(value, t, wanted):
    """The same bits, or a whole number."""
    if (t[0] == "f") != (wanted[0] == "f"):
        return f"ptx_{'as_f' if wanted[0] == 'f' else 'bits_b'}{width(t)}({value})"
    return f"({C_TYPES[wanted]}){value}"


class Kernel:
    """One .entry, line by line."""

    def __init__(self, name, parameter, module_shared):
        self.name, self.parameter = name, parameter  # (name, bytes)
        self.registers, self.lines = {}, []          # name -> type
        self.symbols = {parameter[0]: "PTX_PARAM"}   # -> address
        self.own_bytes, self.local_bytes, self.waits = 0, 1, False
        self.dynamic = []
        self.module_shared = {variable[0]: variable for variable in module_shared}

    def declare_shared(self, name, align, size):
        """The block's own variables first, the memory that the launch gives behind them: as on a card."""
        if size is None:
            self.dynamic.append(name)
            return
        self.own_bytes = (self.own_bytes + align - 1) // align * align
        self.symbols[name] = f"(PTX_SHARED + {self.own_bytes})"
        self.own_bytes += size

    def address_of(self, name):
        if name in self.module_shared:  # a kernel has room for those of the module's that it uses
            self.declare_shared(*self.module_shared.pop(name))
        if name in self.dynamic:
            return "(PTX_SHARED + PTX_OWN)"
        if name not in self.symbols:
            raise Refused(f"unknown name {name}")
        return self.symbols[name]

    def held(self, register, t):
        """The type of a register that an instruction reads or writes as t: as wide, or wider where both are whole numbers."""
        held = self.registers.get(register)
        alike = held and ("pred" in (held, t)) == (held == t == "pred")
        if not alike or width(held) < width(t) or (width(held) > width(t) and "f" in held + t):
            raise Refused(f"{register} ({held}) as {t}")
        return held

    def read(self, operand, t):
        """An operand as a value of type t."""
        if operand in self.registers:
            return convert(c_name(operand), self.held(operand, t), t)
        if match := re.fullmatch(r"0([fd])([0-9A-Fa-f]+)", operand):
            return f"ptx_as_f32(0x{match[2]}u)" if match[1] == "f" else f"ptx_as_f64(0x{match[2]}ull)"
        if re.fullmatch(r"-\d+|\d+|0x[0-9a-fA-F]+", operand):
            return f"({C_TYPES[t]}){operand}{'' if operand[0] == '-' else 'u'}ll"
        if operand in SPECIAL:
            return f"({C_TYPES[t]}){SPECIAL[operand]}"
        if match := re.fullmatch(r"([\w$.]+)(?:\+(-?\d+))?", operand):
            return f"({C_TYPES[t]})({self.address_of(match[1])} + ({match[2] or 0}))"
        raise Refused(f"unknown operand {operand}")

    def assign(self, register, t, value):
        """A value of type t into a register; into a wider one with its sign, if it has one."""
        if register == "_":
            return f"(void)({value});"
        return f"{c_name(register)} = {convert(f'({C_TYPES[t]})({value})', t, self.held(register, t))};"

    def address(self, operand, space):
        """[register + offset]: a 32-bit register's sum is one of 32 bits."""
        match = re.fullmatch(r"\[([%\w$]+)(?:\+(-?\d+))?\]", operand)
        if not match:
            raise Refused(f"unknown address {operand}")
        kind, size = space.split(".")
        t = self.registers.get(match[1], "b64")
        if t not in ("b32", "b64"):
            raise Refused(f"{match[1]} ({t}) is no address")
        return f"ptx_{kind}(&place, ({C_TYPES[t]})({self.read(match[1], t)} + ({match[2] or 0})), {size}, PTX_LINE)"

    def operand(self, name, text, kind):
        """The declaration of a, b, c..."""
        if kind == "#":
            return f"enum {{ {name} = {int(text)} }};"
        if kind[0] == "@":
            return f"void *const {name} = {self.address(text, kind[1:])};"
        if "x" not in kind:
            return f"const {C_TYPES[kind]} {name} = {self.read(text, kind)};"
        t, n = kind.split("x")
        parts = split(text.strip("{}"))
        if len(parts) != int(n):
            raise Refused(f"{text} is no vector of {n}")
        return f"const {C_TYPES[t]} {name}[{n}] = {{{', '.join(self.read(part, t) for part in parts)}}};"

    def table_row(self, row, operands):
        target = operands.pop(0) if row.result else None
        if len(operands) != len(row.operands):
            raise Refused(f"{len(operands)} operands, not {len(row.operands)}")
        text = " ".join(self.operand(name, *pair) for name, pair in zip("abcde", zip(operands, row.operands)))
        if not row.result:
            return f"{text} {row.c};"
        if "x" not in row.result:
            return f"{text} {self.results(target, row.result, row.c)}"
        t, n = row.result.split("x")
        registers = split(target.strip("{}"))
        if len(registers) != int(n):
            raise Refused(f"{target} is no vector of {n}")
        taken = " ".join(self.assign(register, t, f"r[{i}]") for i, register in enumerate(registers))
        return f"{text} {C_TYPES[t]} r[{n}]; {row.c}; {taken}"

    def results(self, target, t, value):
        """shfl has a second one, whether the value is another lane's: nothing here asks for it, so it may not be used."""
        value_register, *said = target.split("|")
        for register in said:
            self.registers.pop(register, None)
        return self.assign(value_register, t, value)

    def move(self, t, target, source):
        """mov: also packs a vector into a register, and unpacks one."""
        if target[0] == "{":
            parts = split(target.strip("{}"))
            part = f"b{int(t[1:]) // len(parts)}"
            value = f"const {C_TYPES[t]} a = {self.read(source, t)};"
            return " ".join([value, *(self.assign(p, part, f"({C_TYPES[part]})(a >> {int(part[1:]) * i})")
                                      for i, p in enumerate(parts))])
        if source[0] == "{":
            parts = split(source.strip("{}"))
            bits = int(t[1:]) // len(parts)
            return self.assign(target, t, " | ".join(f"({C_TYPES[t]}){self.read(p, f'b{bits}')} << {bits * i}"
                                                     for i, p in enumerate(parts)))
        return self.assign(target, t, self.read(source, t))

    def instruction(self, text, line):
        match = re.fullmatch(r"(@(!?)(%?\w+)\s+)?([\w.:]+)\s*(.*)", text, re.S)
        if not match:
            raise Refused("no instruction")
        guard, negated, predicate, opcode, rest = match.groups()
        operands = split(rest)
        if opcode in ("bra", "bra.uni"):
            done = f"goto {operands[0].replace('$', '')};"
        elif opcode == "ret":
            done = "return;"
        elif match := re.fullmatch(r"mov\.(\w+)", opcode):
            if match[1] not in C_TYPES:
                raise Refused(f"unknown instruction {opcode}")
            done = self.move(match[1], *operands)
        elif opcode in OPCODES:
            self.waits |= opcode == "griddepcontrol.wait"
            done = self.table_row(OPCODES[opcode], operands)
        else:
            raise Refused(f"unknown instruction {opcode}")
        when = f"if ({'!' if negated else ''}{self.read(predicate, 'pred')}) " if guard else ""
        self.lines.append(f"{when}{{ enum {{ PTX_LINE = {line} }}; {done} }}")

    def declaration(self, text):
        """.reg, .shared, .local, .pragma. Names in inner braces (inline assembly) are C's too."""
        if PRAGMAS.fullmatch(text):
            return
        if match := re.fullmatch(r"\.reg \.(\w+)\s+(%?\w+)(?:<(\d+)>)?", text):
            names = [f"{match[2]}{i}" for i in range(int(match[3]))] if match[3] else [match[2]]
            self.registers |= {name: match[1] for name in names}
            self.lines.append((C_TYPES[match[1]], names))
        elif variable := shared_variable(text):
            self.declare_shared(*variable)
        elif match := re.fullmatch(r"\.local \.align (\d+) \.b8\s+(\w+)\[(\d+)\]", text):
            if self.local_bytes > 1:
                raise Refused("a second .local")
            self.symbols[match[2]], self.local_bytes = "PTX_LOCAL", int(match[3])
        else:
            raise Refused(f"unknown declaration {text}")

    def c(self):
        """Registers that nothing names need no variable."""
        body = "\n".join(line for line in self.lines if isinstance(line, str))
        used = set(re.findall(r"\b_\w+", body))
        text = []
        for line in self.lines:
            if not isinstance(line, str):
                names = [f"{c_name(name)} = {UNSET.get(line[0], -1)}" for name in line[1] if c_name(name) in used]
                line = f"{line[0]} {', '.join(names)};" if names else ""
            text.append(line)
        own_bytes = (self.own_bytes + 15) // 16 * 16
        head = f"PTX_KERNEL({self.name}, {self.parameter[1]}, {own_bytes}, {self.local_bytes}, {str(self.waits).lower()})"
        return "\n".join([head, "{", f"enum {{ PTX_OWN = {own_bytes} }};", *filter(None, text), "}"])


def shared_variable(text):
    """(name, alignment, bytes), or None where the text declares none; bytes None: the launch's."""
    match = re.fullmatch(r"(?:\.extern )?\.shared \.align (\d+) \.([bu])(\d+) ([\w$]+)(?:\[(\d*)\])?", text)
    if not match:
        return None
    unit = int(match[3]) // 8
    return match[4], int(match[1]), None if match[5] == "" else unit * int(match[5] or 1)


STATEMENT = re.compile(r"\s*(?:(?P<label>[\w$]+):(?!:)|(?P<brace>[{}])|(?P<text>[^;{}]+(?:\{[^;{}]*\}[^;{}]*)*);|$)")
ENTRY = re.compile(r"^\.visible \.entry (\w+)\(\s*\.param \.align \d+ \.b8 (\w+)\[(\d+)\]\s*\)((?:\s*\.(?:maxntid|minnctapersm)[^.{]*)*)\s*\{",
                   re.M)


def translate(text):
    """A module's C, or Refused with a line."""
    text = re.sub(r"//.*", "", text)
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    kernels, shared, at = [], [], 0
    while text[at:].strip():
        entry = ENTRY.search(text, at)
        header = text[at:entry.start() if entry else len(text)]
        for directive in filter(None, (part.strip(" \t;") for part in header.split("\n"))):
            variable = shared_variable(directive)
            if variable:
                shared.append(variable)
            elif not re.fullmatch(r"\.(version|target|address_size) \S+", directive):
                raise Refused(f"unknown directive {directive}")
        if not entry:
            break
        kernel = Kernel(entry[1], (entry[2], int(entry[3])), shared)
        at = translate_body(kernel, text, entry.end(), starts)
        kernels.append(kernel)
    return "\n\n".join(['#include "ptx.h"', *(kernel.c() for kernel in kernels)]) + "\n"


def translate_body(kernel, text, at, starts):
    """From behind the first brace; where the last one ends."""
    depth = 1
    while depth:
        match = STATEMENT.match(text, at)
        line = bisect_right(starts, match.start(match.lastgroup)) if match and match.lastgroup else 0
        if not line:
            raise Refused(f"line {bisect_right(starts, at)}: cannot be read: {text[at:at + 60]!r}")
        at = match.end()
        try:
            if match["label"]:
                kernel.lines.append(f"{match['label'].replace('$', '')}:;")
            elif match["brace"]:
                depth += 1 if match["brace"] == "{" else -1
                kernel.lines += [match["brace"]] if depth or match["brace"] == "{" else []
            elif match["text"][0] == ".":
                kernel.declaration(match["text"].strip())
            else:
                kernel.instruction(match["text"].strip(), line)
        except Refused as refused:
            raise Refused(f"line {line}: {refused}: {match[0].strip()}") from None
    return at


def main():
    try:
        with open(sys.argv[1], encoding="utf-8") as file:
            sys.stdout.write(translate(file.read()))
    except Refused as refused:
        sys.exit(f"{sys.argv[1]}: {refused}")


if __name__ == "__main__":
    main()
