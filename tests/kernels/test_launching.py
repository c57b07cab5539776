"""A launch goes through Triton once, then starts the compiled kernel with the same grid, sizes and constants."""

from types import SimpleNamespace

import pytest

launching = pytest.importorskip("lightint_compile.kernels.launching", reason="Triton is not installed")


class Kernel:
    """Records launches as Triton's functions take them."""

    arg_names = ("a", "b", "size", "factor", "TILE", "WIDE")

    def __init__(self, scratch=0):
        self.calls, self.scratch = [], scratch

    def __getitem__(self, grid):
        def launch(*args, **options):
            self.calls.append(("triton", grid, args, options))
            return self.compiled()

        return launch

    def compiled(self):
        """What Triton gives back: its launcher hides the function that starts the kernel behind one for descriptors."""

        def launcher(*args):
            self.calls.append(("started", *args))

        def inner(*args):
            return launcher("unpacked", *args)

        run = SimpleNamespace(
            launch=inner, global_scratch_size=self.scratch, profile_scratch_size=0, launch_cooperative_grid=False,
            launch_pdl=False,
        )  # fmt: skip
        return SimpleNamespace(run=run, function="function", packed_metadata="packed", metadata=SimpleNamespace())


def launch_of(kernel):
    return launching.Launch(kernel, (3, 2), [7, 0.5], {"TILE": 4, "num_warps": 8, "WIDE": True})


def test_the_second_launch_is_direct_and_passes_constants_in_the_kernel_s_order(monkeypatch):
    monkeypatch.setattr(launching, "_DIRECT", True)
    kernel = Kernel()
    launch = launch_of(kernel)
    assert not launch.ready
    launch(None, "x", "y")
    assert launch.ready
    launch(11, "u", "v")
    first, second = kernel.calls
    assert first == ("triton", (3, 2, 1), ("x", "y", 7, 0.5), {"TILE": 4, "num_warps": 8, "WIDE": True})
    handles = ("function", False, False, None, None, "packed", None, None, None)
    assert second == ("started", 3, 2, 1, 11, *handles, "u", "v", 7, 0.5, 4, True)


def test_without_a_stream_triton_launches_as_it_always_does(monkeypatch):
    monkeypatch.setattr(launching, "_DIRECT", True)
    kernel = Kernel()
    launch = launch_of(kernel)
    launch(None, "x", "y")
    launch(None, "u", "v")
    assert [call[0] for call in kernel.calls] == ["triton", "triton"]


@pytest.mark.parametrize(("direct", "scratch"), [(False, 0), (True, 64)])
def test_other_versions_of_triton_and_kernels_with_scratch_memory_are_never_started_directly(
    direct, scratch, monkeypatch
):
    monkeypatch.setattr(launching, "_DIRECT", direct)
    launch = launch_of(Kernel(scratch))
    launch(None, "x", "y")
    assert not launch.ready and launching.current_stream(0, [launch]) is None


def test_a_profiler_that_watches_launches_gets_triton_s_own(monkeypatch):
    from triton import knobs

    monkeypatch.setattr(launching, "_DIRECT", True)
    monkeypatch.setattr(launching.torch._C, "_cuda_getCurrentRawStream", lambda device: 40 + device, raising=False)
    launch = launch_of(Kernel())
    launch(None, "x", "y")
    assert launching.current_stream(2, [launch]) == 42
    assert launching.current_stream(None, [launch]) is None
    monkeypatch.setattr(knobs.runtime, "launch_enter_hook", lambda metadata: None)
    assert launching.current_stream(2, [launch]) is None
