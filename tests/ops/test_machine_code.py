"""Loops and kinds of instruction, read from machine code."""

import pytest

from vilt_fast.bench import machine_code


def sass(*lines: str) -> str:
    """Lines as cuobjdump prints them, 16 bytes apart."""
    return "\n".join(
        f"        /*{16 * i:04x}*/              {line} ;  /* 0x0 */\n   /* 0x1 */" for i, line in enumerate(lines)
    )


# Two blocks for each tile, a loop over K inside, a wait that spins behind the end, and the trap.
NESTED = sass(
    *["MOV R1, R2"] * 3,
    *["IADD3 R1, R2, R3"] * 9,  # 3: a tile begins
    "@!P0 BRA 0x190",  # 12: to the wait
    *["HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24"] * 2,  # 13: a turn
    *["UTMALDG.2D [UR8], [UR4]"] * 6,
    "@P0 BRA 0xd0",  # 21: the next turn
    *["STG.E.128 desc[UR4][R2.64], R4"] * 1,
    "@P1 BRA 0x30",  # 23: the next tile
    "EXIT",
    "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R2",  # 25
    "@!P0 BRA 0x190",
    "BRA 0xd0",
    "BRA 0x1c0",
)


def test_nested_loops() -> None:
    code = machine_code.read_sass(NESTED)
    inner, outer = sorted(machine_code.loops(code), key=len)
    assert (min(inner), max(inner), len(inner)) == (13, 21, 9) and (min(outer), max(outer)) == (3, 27)
    counts = machine_code.describe(code)
    assert (counts["instructions"], counts["inner"]) == (29, 9)
    assert (counts["inner_matrix"], counts["inner_global_load"], counts["inner_global_store"]) == (2, 6, 0)
    # Nine at the beginning, the branch to the wait, the wait, the store and the branch of tiles.
    assert counts["outer"] == 9 + 1 + 3 + 2 and counts["outer_global_store"] == 1 and counts["outer_barrier"] == 1


def test_two_loops_in_one() -> None:
    """Of a flattened loop the epilogue counts as outer: a branch skips it in most turns."""
    code = machine_code.read_sass(
        sass(
            "MOV R1, R2",
            *["HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24"] * 4,
            "@P0 BRA 0x110",
            *["MUFU.EX2 R1, R2"] * 10,
            "STS.128 [R2], R4",
            "@P1 BRA 0x10",
            "EXIT",
        )
    )
    counts = machine_code.describe(code)
    assert (counts["inner"], counts["inner_matrix"]) == (4 + 1 + 1, 4)
    assert (counts["outer"], counts["outer_special"], counts["outer_shared_store"]) == (11, 10, 1)


def test_no_loop() -> None:
    counts = machine_code.describe(
        machine_code.read_sass(sass("LDG.E R1, R2", "@P0 LDS R1, [R2]", "STL [R1], R2", "EXIT"))
    )
    assert counts["inner"] == 0 and counts["outer"] == counts["instructions"] == 4
    kinds = {kind: counts[f"outer_{kind}"] for kind in machine_code.KINDS if counts[f"outer_{kind}"]}
    assert kinds == {"global_load": 1, "shared_load": 1, "local": 1}


def test_amd() -> None:
    lines = ["\ts_mov_b32 s0, 1", ".LBB0_1:  ; =>This Inner Loop", *["\tv_mfma_f32_16x16x16_bf16 a[0:3], v1"] * 3]
    lines += ["\tds_read_b128 v[0:3], v4"] * 4 + [
        "\tglobal_load_dwordx4 v[0:3], v4, s[0:1]",
        "\ts_cbranch_scc1 .LBB0_1",
    ]
    lines += ["\ts_cbranch_execz .LBB0_4", "\tglobal_store_dwordx2 v[0:1], v2", ".LBB0_4:", "\ts_endpgm"]
    counts = machine_code.describe(machine_code.read_amd("\n".join(lines)))
    assert (counts["instructions"], counts["inner"], counts["outer"]) == (13, 9, 4)
    assert (counts["inner_matrix"], counts["inner_shared_load"], counts["inner_global_load"]) == (3, 4, 1)
    assert counts["outer_global_store"] == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("LDG.E.128", "global_load"), ("LDGSTS.E", "global_load"), ("LDGDEPBAR", "barrier"), ("LDSM.16", "shared_load"),
        ("UTMASTG.2D", "global_store"), ("STSM.16", "shared_store"), ("STL.64", "local"), ("I2F.U8", "convert"),
        ("F2FP.BF16.F32.PACK_AB", "convert"), ("BAR.SYNC", "barrier"), ("BRA", None), ("QGMMA.64x8x32", "matrix"),
        ("UTCHMMA", "matrix"), ("FFMA", None), ("v_exp_f32_e32", "special"), ("s_waitcnt", "barrier"), ("IMAD", None),
    ],
)  # fmt: skip
def test_kinds(name: str, kind: str | None) -> None:
    assert [found for found, rule in machine_code._KINDS.items() if rule.match(name)] == ([kind] if kind else [])
