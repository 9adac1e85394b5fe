"""The stream of random words against the definition of Philox."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lightning_kernels._core.launch import launch
from lightning_kernels._core.random import WORDS_PER_CALL, random_words, reserve
from lightning_kernels._core.triton import tl, triton

WORD = 2**32


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox4x32-10 as Salmon et al. (2011) define it, on Python's integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (right // WORD) ^ c1 ^ k0,
            right % WORD,
            (left // WORD) ^ c3 ^ k1,
            left % WORD,
        )
        k0, k1 = (k0 + 0x9E3779B9) % WORD, (k1 + 0xBB67AE85) % WORD
    return c0, c1, c2, c3


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # known answers published with the Random123 library
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_definition_itself(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert philox(counter, key) == expected


@triton.jit(do_not_specialize=["seed", "offset"])  # type: ignore[untyped-decorator]
def _words_kernel(  # type: ignore[no-untyped-def]
    out_ptr, state_ptr, seed: tl.uint64, offset: tl.uint64, group, SIZE: tl.constexpr
):
    words = random_words(state_ptr, seed, offset, group, SIZE)
    tl.store(out_ptr + tl.arange(0, SIZE), words.to(tl.int64))


@pytest.mark.kernel
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("group", [0, 5, 2**32 - 1, 2**40 + 3])
@pytest.mark.parametrize(("seed", "offset"), [(0, 0), (7, 4), (2**63 - 1, 2**62), (2**31, 2**35)])
def test_words_are_philox_of_place(
    seed: int, offset: int, group: int, on_device: bool, device: str
) -> None:
    state = torch.tensor([seed, offset], device=device) if on_device else None
    place = (0, 0) if on_device else (seed, offset)
    words = torch.empty(16, dtype=torch.int64, device=device)
    launch(_words_kernel, (1,), words.device, words, state, *place, group, SIZE=16)
    expected = [
        word
        for g in range(group, group + 4)
        for word in philox(
            (offset // 4 % WORD, offset // 4 // WORD, g % WORD, g // WORD),
            (seed % WORD, seed // WORD),
        )
    ]
    assert words.tolist() == expected


def test_each_place_is_new_and_follows_the_seed(device: str) -> None:
    x = torch.empty(1, device=device)

    def places() -> list[tuple[int, int]]:
        torch.manual_seed(5)
        return [(reserve(x).seed, reserve(x).offset) for _ in range(20)]

    first = places()
    assert len(set(first)) == 20
    assert places() == first


@pytest.mark.gpu
def test_a_reservation_advances_torchs_own_generator() -> None:
    generator = torch.cuda.default_generators[0]
    before = generator.get_offset()
    stream = reserve(torch.empty(1, device="cuda:0"))
    assert stream == (None, generator.initial_seed(), before)
    assert generator.get_offset() == before + WORDS_PER_CALL


@pytest.mark.gpu
def test_positions_follow_each_other_as_torchs_own() -> None:
    x = torch.empty(8, device="cuda")
    for seed in (0, 7, 2**64 - 1):
        torch.cuda.manual_seed(seed)
        first, second = reserve(x), reserve(x)
        assert (first.seed, first.offset) == (seed, 0)
        assert (second.seed, second.offset) == (seed, WORDS_PER_CALL)
        generator = torch.cuda.default_generators[0]
        assert generator.get_offset() == 2 * WORDS_PER_CALL


@pytest.mark.gpu
def test_threads_get_different_positions() -> None:
    x = torch.empty(8, device="cuda")
    with ThreadPoolExecutor(8) as pool:
        places = list(pool.map(lambda _: reserve(x).offset, range(400)))
    assert len(set(places)) == 400
