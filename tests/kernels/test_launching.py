"""A launch goes through Triton once, then starts the compiled kernel with what the installed Triton would pass."""

from types import SimpleNamespace

import pytest

launching = pytest.importorskip("lightint_compile.kernels.launching", reason="Triton is not installed")

from lightint_compile.kernels import triton_compat  # noqa: E402

FUSED = {"enable_fp_fusion": True}


class Started:
    """Stands in for the function of the driver that starts kernels."""

    def __init__(self):
        self.calls = []

    def __call__(self, *arguments):
        self.calls.append(arguments)


@pytest.fixture
def driver(monkeypatch):
    """An active driver without a device: it records what is started, and which descriptors are filled in."""
    import triton

    started = Started()
    filled = dict.fromkeys(
        ("fill_tma_descriptor", "fill_tma_descriptor_tiled"), lambda *form: ("made", *map(str, form))
    )
    utils = SimpleNamespace(launch=started, **filled)
    active = SimpleNamespace(utils=utils, get_current_device=lambda: 0)
    monkeypatch.setattr(type(triton.runtime.driver), "active", active)
    return started


def launcher_of(started, scratch=0):
    """The installed Triton's own launcher of a kernel, without the compiled module that it loads."""
    from triton.backends.nvidia.driver import CudaLauncher

    run = object.__new__(CudaLauncher)
    run.launch, run.num_ctas = started, 1
    run.global_scratch_size = run.profile_scratch_size = scratch
    run.global_scratch_align = run.profile_scratch_align = 1
    run.launch_cooperative_grid, run.launch_pdl = False, False
    run.arg_annotations, run.kernel_signature, run.gsan_enabled = "annotations", "signature", False
    return run


class Kernel:
    """Records launches as Triton's functions take them."""

    arg_names = ("a", "b", "size", "factor", "TILE", "WIDE")

    def __init__(self, run):
        self.calls, self.run = [], run

    def __getitem__(self, grid):
        def launch(*args, **options):
            self.calls.append((grid, args, options))
            return SimpleNamespace(
                run=self.run, function=77, packed_metadata=("packed",), metadata=SimpleNamespace(tensordesc_meta=None)
            )

        return launch


def launch_of(kernel):
    return launching.Launch(kernel, (3, 2), [7, 0.5], {"TILE": 4, "num_warps": 8, "WIDE": True})


def told(call):
    """What was started, in a form that compares: lists and tuples of arguments alike."""
    return [tuple(part) if isinstance(part, list) else part for part in call]


def test_the_second_launch_starts_what_triton_itself_would_start(driver):
    run = launcher_of(driver)
    kernel = Kernel(run)
    launch = launch_of(kernel)
    assert not launch.ready
    launch(None, "x", "y")
    assert launch.ready and not driver.calls
    assert kernel.calls == [((3, 2, 1), ("x", "y", 7, 0.5), {"TILE": 4, "num_warps": 8, "WIDE": True, **FUSED})]
    launch(11, "u", "v")
    run(3, 2, 1, 11, 77, ("packed",), None, None, None, "u", "v", 7, 0.5, 4, True)
    ours, own = driver.calls
    assert told(ours) == told(own) and len(kernel.calls) == 1


def test_a_descriptor_is_expanded_as_triton_expands_it(driver):
    import torch
    from triton.backends.nvidia.driver import wrap_handle_tensordesc

    hopper = pytest.importorskip("lightint_compile.kernels.hopper.launch")
    box = hopper._Box([4, 300, 128], [38400, 128, 1], [1, 128, 128])
    descriptor = hopper._descriptor(torch.zeros(4 * 300 * 128, dtype=torch.bfloat16), box)
    form = {"swizzle": 3, "elem_size": 2, "elem_type": 10, "block_size": [1, 128, 64], "fp4_padded": False}
    run = launcher_of(driver)
    signature = {"query": "tensordesc<bf16[1,128,128],layout>", "size": "i32"}
    run.launch = wrap_handle_tensordesc(driver, signature, [form])
    compiled = SimpleNamespace(run=run, function=77, packed_metadata=("packed",))
    start = triton_compat.starter(compiled)
    start(3, 2, 1, 11, (*triton_compat.described(descriptor, form), 5))
    run(3, 2, 1, 11, 77, ("packed",), None, None, None, descriptor, 5)
    ours, own = driver.calls
    assert told(ours) == told(own)


def test_a_descriptor_has_all_that_its_class_would_give_it():
    import torch

    hopper = pytest.importorskip("lightint_compile.kernels.hopper.launch")
    box = hopper._Box([4, 300, 128], [38400, 128, 1], [1, 128, 128])
    tensor = torch.zeros(4 * 300 * 128, dtype=torch.bfloat16)
    checked = hopper.TensorDescriptor(tensor, box.shape, box.strides, box.block, hopper._shared(3))
    assert vars(hopper._descriptor(tensor, box)) == vars(checked)


def test_tensors_are_started_by_address_and_odd_ones_as_triton_does(driver, monkeypatch):
    import torch

    monkeypatch.setattr(launching, "raw_stream", lambda device: 40 + device)
    kernel, tensor = Kernel(launcher_of(driver)), torch.zeros(64)
    launch = launch_of(kernel)
    for _ in range(3):
        launch.run((tensor, None), 2)
    assert len(kernel.calls) == 1 and len(driver.calls) == 2
    assert 42 in driver.calls[-1] and str(tensor.data_ptr()) in str(driver.calls[-1])
    launch.run((tensor[1:], None), 2)  # starts where Triton compiles another variant
    assert len(kernel.calls) == 2


def test_without_a_stream_triton_launches_as_it_always_does(driver):
    kernel = Kernel(launcher_of(driver))
    launch = launch_of(kernel)
    launch(None, "x", "y")
    launch(None, "u", "v")
    assert len(kernel.calls) == 2 and not driver.calls


@pytest.mark.parametrize("reason", ["a later Triton", "scratch memory", "instrumented"])
def test_later_versions_and_kernels_that_want_memory_of_their_own_are_never_started_directly(
    reason, driver, monkeypatch
):
    run = launcher_of(driver, scratch=64 if reason == "scratch memory" else 0)
    run.gsan_enabled = reason == "instrumented"
    if reason == "a later Triton":
        monkeypatch.setattr(triton_compat, "TRITON", (triton_compat.NEWEST[0], triton_compat.NEWEST[1] + 1))
    launch = launch_of(Kernel(run))
    launch(None, "x", "y")
    assert not launch.ready and launching.current_stream(0, [launch]) is None


def test_a_profiler_that_watches_launches_gets_triton_s_own(driver, monkeypatch):
    from triton import knobs

    monkeypatch.setattr(launching, "raw_stream", lambda device: 40 + device)
    launch = launch_of(Kernel(launcher_of(driver)))
    launch(None, "x", "y")
    assert launching.current_stream(2, [launch]) == 42
    assert launching.current_stream(None, [launch]) is None
    monkeypatch.setattr(knobs.runtime, "launch_enter_hook", lambda metadata: None)
    assert launching.current_stream(2, [launch]) is None


@pytest.mark.parametrize(
    ("version", "fits"), [((3, 5), False), ((3, 6), True), ((3, 7), True), ((3, 9), True), ((3, 10), False)]
)
def test_the_gluon_kernel_says_which_versions_it_is_written_for(version, fits, monkeypatch):
    monkeypatch.setattr(triton_compat, "TRITON", version)
    obstacle = triton_compat.gluon_obstacle()
    assert (obstacle is None) is fits
    assert fits or "3.6 to 3.9" in obstacle
