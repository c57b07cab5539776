"""Checksums of memory: the specification, the kernel by interpretation and ahead of time, and how strong they are."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightint_compile.kernels import checksum, checksum_words
from lightint_compile.kernels.checksum import Memory, device_sums, host_sums, in_memory_order
from lightint_compile.kernels.checksum_words import sums_of

PROGRAM = Path(__file__).parents[1] / "support/checksum_interpreted.py"
DTYPES = [torch.uint8, torch.bool, torch.bfloat16, torch.float8_e5m2, torch.int64, torch.float64, torch.complex64]


def by_hand(content: bytes) -> list[int]:
    """The specification, word by word."""
    sums = [0, 0]
    for place, start in enumerate(range(0, len(content), 4)):
        x = int.from_bytes(content[start : start + 4], "little")
        x ^= place * 0x9E3779B1 % 2**32
        x ^= x >> 16
        x = (x * 0x85EBCA6B + place) % 2**32
        x ^= x >> 13
        x = x * 0xC2B2AE35 % 2**32
        x ^= x >> 16
        y = x * 0x27D4EB2F % 2**32
        sums = [(sums[0] + x) % 2**32, (sums[1] + (y ^ y >> 15)) % 2**32]
    return [each - 2**32 * (each >= 2**31) for each in sums]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 8, 1023])
def test_the_plain_form_is_the_sum_over_words(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksum_words, "_AT_ONCE", 64)
    piece = torch.randint(0, 256, (size,), dtype=torch.uint8)
    assert sums_of(piece).tolist() == [by_hand(bytes(piece.tolist()))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_have_checksums_of_their_own_whatever_the_dtype(dtype: torch.dtype) -> None:
    piece = torch.randint(0, 2, (6, 5, 3)).to(dtype)
    expected = torch.cat([sums_of(row.contiguous()) for row in piece])
    assert torch.equal(sums_of(piece, 6), expected)
    assert host_sums(Memory.of([piece], [6])) == [host_sums(Memory.of([row.clone()]))[0] for row in piece]


def test_an_axis_of_size_one_may_have_any_stride() -> None:
    piece = torch.randn(4, 32)[:, :1]
    for rows in (1, 4):
        assert torch.equal(sums_of(piece.as_strided((1, 4), (99, 1)), 1), sums_of(piece.as_strided((4,), (1,)), 1))
        assert len(sums_of(in_memory_order(piece), rows)) == rows


def test_memory_is_read_in_its_own_order_without_a_copy_where_there_are_no_gaps() -> None:
    piece = torch.randn(3, 4, 5)
    for view in (piece, piece.permute(2, 0, 1), piece.transpose(0, 1), piece[1], piece[1:]):
        ordered = in_memory_order(view)
        assert ordered.data_ptr() == view.data_ptr() and ordered.is_contiguous()
    for view in (piece[:, 1], piece[..., ::2], piece.expand(2, 3, 4, 5), piece[0, 0].expand(7, 5)):
        ordered = in_memory_order(view)
        assert ordered.is_contiguous() and torch.equal(ordered, view)


def changed_copies(content: torch.Tensor) -> list[torch.Tensor]:
    """Contents that a weak checksum takes for the same."""
    swapped, moved, halves = content.clone(), content.roll(1), content.roll(len(content) // 2)
    swapped[[0, -1]] = swapped[[-1, 0]]
    signs, pair, low = content.clone(), content.clone(), content.clone()
    signs[[3, 7]] ^= -(2**31)
    pair[3], pair[7] = pair[3] + 1, pair[7] - 1
    low[-1] ^= 1
    return [swapped, moved, halves, content.flip(0), signs, pair, low, -content, content ^ 1]


@pytest.mark.parametrize("digest", [lambda c: tuple(sums_of(c)[0].tolist()), lambda c: host_sums(Memory.of([c]))[0]])
@pytest.mark.parametrize("kind", ["random", "counting", "ones and zeros"])
def test_contents_with_equal_words_or_equal_sums_are_told_apart(digest, kind: str) -> None:
    made = {
        "random": torch.randint(-(2**31), 2**31, (4096,)),
        "counting": torch.arange(1, 4097),
        "ones and zeros": torch.arange(4096) // 3 % 2,
    }
    content = made[kind].to(torch.int32)
    variants = [each for each in changed_copies(content) if not torch.equal(each, content)]
    distinct = {bytes(each.numpy().tobytes()) for each in (content, *variants)}
    assert len({digest(each) for each in (content, *variants)}) == len(distinct) >= 8


def test_every_change_of_one_bit_changes_both_numbers_about_evenly() -> None:
    content = torch.randint(-(2**31), 2**31, (64,)).to(torch.int32)
    flipped = content.repeat(64 * 32, 1)
    which = torch.arange(64 * 32)
    flipped[which, which // 32] ^= torch.ones((), dtype=torch.int32) << (which % 32).to(torch.int32)
    difference = sums_of(flipped, len(flipped)) ^ sums_of(content)
    bits = torch.stack([difference >> bit & 1 for bit in range(32)]).double().mean(1)
    assert difference.ne(0).all(), "the first number is a bijection of a word; the second all but surely differs"
    assert bits.sub(0.5).abs().max() < 0.12
    assert len(sums_of(flipped, len(flipped)).unique(dim=0)) == len(flipped)


def test_without_the_package_another_digest_of_64_bits_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xxhash", None)
    checksum._host_digest.cache_clear()
    try:
        one, other = host_sums(Memory.of([torch.zeros(3), torch.ones(3)]))
        assert one != other and max(one, other).bit_length() > 32
    finally:
        checksum._host_digest.cache_clear()


def test_the_kernel_interpreted_is_the_specification() -> None:
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr[-2000:]
    equal = json.loads(done.stdout.splitlines()[-1])
    assert len(equal) == 10 and all(equal.values()), equal


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_compiles_ahead_of_time_to_wide_loads_and_few_instructions(capability: int) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    home = importlib.import_module("lightint_compile.kernels.portable.checksum")
    constants = {"BLOCK": home._BLOCK, "TURNS": home._TURNS, "SMALL": home._SMALL, "WORDWISE": True}
    types = {"addresses": "*i64", "sizes": "*i64", "piece_of": "*i32", "part_of": "*i32", "sums": "*i32"}
    signature = types | dict.fromkeys(constants, "constexpr")
    fixed = {(home.checksum_kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(home.checksum_kernel, signature, fixed, {})
    options = {"num_warps": home._WARPS}
    code = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]
    words = home._BLOCK // (32 * home._WARPS)
    assert len(re.findall(r"ld\.global\.v4\.b32", code)) == words // 4
    assert code.count("mul.lo") + code.count("mad.lo") <= 6 * words + 64, "products are the scarce instruction"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_on_a_gpu_the_kernel_is_the_specification(dtype: torch.dtype) -> None:
    memory = torch.randint(0, 2, (300_011,)).to(dtype).cuda()
    pieces = [memory, memory[1:], memory[3:3], memory[:1], memory[5:70_000], memory[:131_072].view(8, -1)]
    rows = [1, 1, 1, 1, 1, 8]
    for _ in range(2):
        found = device_sums(Memory.of(pieces, rows))
        expected = torch.cat([sums_of(piece.cpu(), count) for piece, count in zip(pieces, rows, strict=True)])
        assert torch.equal(found.cpu(), expected)


@pytest.mark.gpu
def test_on_a_gpu_many_pieces_take_one_launch_and_give_the_same_every_time() -> None:
    pieces = [torch.randn(size, device="cuda", dtype=torch.bfloat16) for size in (7, 4096, 1 << 20) for _ in range(300)]
    first = device_sums(Memory.of(pieces))
    assert all(torch.equal(device_sums(Memory.of(pieces)), first) for _ in range(20))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        device_sums(Memory.of(pieces))
        torch.cuda.synchronize()
    launches = sum(event.count for event in profile.key_averages() if "checksum_kernel" in event.key)
    assert launches == 1
