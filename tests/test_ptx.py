"""What the translator of PTX (tests/shim/ptx_to_c.py) must not take: whatever it does not know to the last modifier ends the build by
its name and line. What instructions mean is tests/ptx/test_ptx.c's."""

import subprocess
import sys

import pytest

from conftest import ROOT

sys.path.append(str(ROOT / "tests/shim"))
from ptx_to_c import Refused, translate  # noqa: E402

KERNEL = """.version 8.4
.target sm_89
.address_size 64
.visible .entry k(
    .param .align 8 .b8 k_param_0[16]
)
.maxntid 256, 1, 1
{
    .reg .pred     %%p<4>;
    .reg .b16     %%rs<4>;
    .reg .b32     %%r<8>;
    .reg .f32     %%f<4>;
    .reg .b64     %%rd<4>;
    %s
    ret;
}
"""
LINE = 14  # of the instruction


def refused(text, says):
    with pytest.raises(Refused) as refusal:
        translate(text)
    assert says in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize("instruction, says", [
    ("add.sat.s32 %r1, %r2, %r3;", "unknown instruction add.sat.s32"),
    ("add.f32 %f1, %f2, %f3;", "unknown instruction add.f32"),  # not rounded as -fmad=false has it
    ("ex2.approx.f32 %f1, %f2;", "unknown instruction ex2.approx.f32"),
    ("ld.weak.global.u32 %r1, [%rd1];", "unknown instruction ld.weak.global.u32"),
    ("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r1}, {%f1};", "m16n8k8"),
    ("cvta.shared.u64 %rd1, %rd2;", "unknown instruction cvta.shared.u64"),
    ("add.s32 %r1, %r2;", "1 operands, not 2"),
    ("@%p1, add.s32 %r1, %r2, %r3;", "no instruction"),
    ("add.s64 %rd1, %rd2, %r3;", "%r3 (b32) as s64"),
    ("cvt.u64.u32 %r1, %r2;", "%r1 (b32) as u64"),
    ("and.pred %p1, %p2, %r1;", "%r1 (b32) as pred"),
    ("mov.b64 %rd1, %f1;", "%f1 (f32) as b64"),
    ("add.s32 %r1, %r2, %r99;", "unknown operand %r99"),
    ("mov.u32 %r1, elsewhere;", "unknown name elsewhere"),
    ("mov.u32 %r1, %clock;", "unknown operand %clock"),
    ("ld.global.v4.u32 {%r1, %r2}, [%rd1];", "no vector of 4"),
    ("ld.global.u32 %r1, [%rs1];", "%rs1 (b16) is no address"),
    ("shfl.sync.up.b32 %r1|%p1, %r2, 1, 0, -1; @%p1 bra $L;", "unknown operand %p1"),
    (".local .align 4 .b8 one[4]; .local .align 4 .b8 two[4];", "a second .local"),
    ('.pragma "something else";', "unknown declaration"),
])
def test_what_is_not_known_is_refused(instruction, says):
    assert f"line {LINE}: " in refused(KERNEL % instruction, says)


@pytest.mark.parametrize("text", [".global .b8 table[4];", ".func f() { ret; }", ".visible .entry two(.param .u32 a, .param .u32 b) { ret; }"])
def test_modules_of_other_kinds_are_refused(text):
    refused(KERNEL % "" + text + "\n", "unknown directive")


def test_a_kernel_without_an_end_is_refused():
    refused((KERNEL % "").rsplit("}", 1)[0], "cannot be read")


def test_a_refusal_names_the_file_and_ends_the_build(tmp_path):
    source = tmp_path / "k.ptx"
    source.write_text(KERNEL % "trap;")
    result = subprocess.run([sys.executable, ROOT / "tests/shim/ptx_to_c.py", source], capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr == f"{source}: line {LINE}: unknown instruction trap: trap;\n"
    source.write_text(KERNEL % "")
    result = subprocess.run([sys.executable, ROOT / "tests/shim/ptx_to_c.py", source], capture_output=True, text=True)
    assert result.returncode == 0 and "PTX_KERNEL(k, 16, 0, 1, false)" in result.stdout
