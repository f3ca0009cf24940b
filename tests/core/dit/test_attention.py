"""Which of PyTorch's attention kernels is the fastest: the decision with a fake timer, the measuring on a GPU."""

import threading

import pytest
import torch
from torch.nn.attention import SDPBackend

from fantasyid_core.dit.attention import (
    BACKENDS,
    CLEARLY,
    SHORTEST,
    FastestBackend,
    asking_for,
    fastest,
    scaled_dot_product,
    time_on_gpu,
)

FLASH, CUDNN, EFFICIENT = BACKENDS
SHAPE = (2, 48, 17776, 64)
CPU = torch.device("cpu")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({FLASH: 24.3, CUDNN: 17.4, EFFICIENT: 40.0}, CUDNN),  # an H100
        ({FLASH: 17.0, CUDNN: 24.0, EFFICIENT: 40.0}, FLASH),
        ({FLASH: 24.0, CUDNN: 24.0 * CLEARLY + 0.1, EFFICIENT: 40.0}, FLASH),
        ({FLASH: None, CUDNN: None, EFFICIENT: 40.0}, EFFICIENT),
        ({FLASH: None, CUDNN: 30.0, EFFICIENT: 20.0}, EFFICIENT),
        ({FLASH: None, CUDNN: None, EFFICIENT: None}, None),
    ],
    ids=str,
)
def test_the_first_that_runs_unless_another_is_clearly_faster(seconds, chosen):
    assert fastest(seconds) is chosen


@pytest.fixture
def calls() -> list[tuple]:
    return []


@pytest.fixture
def choose(calls) -> FastestBackend:
    """With a timer by which cuDNN is fast in bfloat16 alone."""

    def timer(backend, shape, dtype, device):
        calls.append((backend, shape, dtype, device))
        return 1.0 if backend is CUDNN and dtype is torch.bfloat16 else 2.0

    return FastestBackend(timer)


def test_it_is_measured_once_for_every_shape_and_type(choose, calls):
    assert [choose(SHAPE, torch.bfloat16, CPU) for _ in range(3)] == [CUDNN] * 3
    assert calls == [(backend, SHAPE, torch.bfloat16, CPU) for backend in BACKENDS]
    assert choose(SHAPE, torch.float16, CPU) is FLASH
    assert choose((1, *SHAPE[1:]), torch.bfloat16, CPU) is CUDNN
    assert len(calls) == 3 * len(BACKENDS)


def test_short_sequences_are_left_to_pytorch(choose, calls):
    assert choose((2, 48, SHORTEST - 1, 64), torch.bfloat16, CPU) is None
    assert calls == []


def first_backend() -> int:
    return int(torch._C._get_sdp_priority_order()[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_is_asked_for_first_and_only_within_the_context(backend: SDPBackend):
    before = first_backend()
    with asking_for(backend):
        assert first_backend() == backend.value
    assert first_backend() == before
    with asking_for(None):
        assert first_backend() == before


def test_an_attention_that_no_asked_kernel_can_compute_still_runs():
    q, k, v = torch.randn(3, 1, 2, 8, 16, dtype=torch.float64)
    with asking_for(CUDNN):
        out = scaled_dot_product(q, k, v)
    right = (q @ k.mT / 4).softmax(-1) @ v
    torch.testing.assert_close(out, right.transpose(1, 2).flatten(2))


@on_gpu
def test_measuring_leaves_the_samplers_noise_alone():
    device = torch.device("cuda", torch.cuda.current_device())
    state = torch.cuda.get_rng_state()
    assert time_on_gpu(EFFICIENT, (2, 4, 4096, 64), torch.float16, device) > 0
    assert time_on_gpu(FLASH, (2, 4, 4096, 64), torch.float32, device) is None  # flash has no float32
    assert torch.equal(torch.cuda.get_rng_state(), state)


@on_gpu
def test_the_chosen_kernel_is_the_fastest_of_a_whole_block_and_computes_the_same():
    device = torch.device("cuda", torch.cuda.current_device())
    generator = torch.Generator(device).manual_seed(1)
    size = (3, SHAPE[0], SHAPE[2], SHAPE[1], SHAPE[3])
    q, k, v = torch.randn(size, device=device, dtype=torch.bfloat16, generator=generator).transpose(2, 3)
    chosen = FastestBackend(time_on_gpu)(SHAPE, torch.bfloat16, device)
    times, outs = {}, {}
    for backend in BACKENDS:
        with asking_for(backend):
            outs[backend] = scaled_dot_product(q, k, v)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(5):
                scaled_dot_product(q, k, v)
            end.record()
            end.synchronize()
            times[backend] = start.elapsed_time(end) / 5
    assert times[chosen] < 1.1 * min(times.values()), times
    for out in outs.values():
        assert (out - outs[chosen]).float().norm() < 0.01 * out.float().norm()


def test_threads_that_ask_for_different_kernels_wait_for_each_other():
    before, seen, inside = first_backend(), [], threading.Barrier(2, timeout=5)

    def other() -> None:
        inside.wait()
        with asking_for(EFFICIENT):
            seen.append(first_backend())

    thread = threading.Thread(target=other)
    thread.start()
    with asking_for(CUDNN):
        inside.wait()
        thread.join(0.1)
        assert thread.is_alive()
        assert first_backend() == CUDNN.value
    thread.join(5)
    assert seen == [EFFICIENT.value]
    assert first_backend() == before


def test_threads_that_ask_for_the_same_kernel_share_it_until_the_last_has_left():
    before, inside, left = first_backend(), threading.Barrier(2, timeout=5), threading.Event()

    def other() -> None:
        with asking_for(CUDNN):
            inside.wait()
            left.wait(5)

    thread = threading.Thread(target=other)
    thread.start()
    with asking_for(CUDNN):
        inside.wait()
    assert first_backend() == CUDNN.value
    left.set()
    thread.join(5)
    assert first_backend() == before
