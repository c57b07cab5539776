"""A launch goes through Triton once, then starts the compiled kernel with the same grid, sizes and constants."""

import pytest

launching = pytest.importorskip("lightint_compile.kernels.launching", reason="Triton is not installed")


class Kernel:
    """Records launches as Triton's functions take them."""

    arg_names = ("a", "b", "size", "factor", "TILE", "WIDE")

    def __init__(self):
        self.calls = []

    def __getitem__(self, grid):
        def launch(*args, **options):
            self.calls.append(("triton", grid, args, options))
            return Compiled(self.calls)

        return launch


class Compiled:
    def __init__(self, calls):
        self.calls = calls

    def __getitem__(self, grid):
        return lambda *args: self.calls.append(("compiled", grid, args))


@pytest.fixture
def launch(monkeypatch):
    kernel = Kernel()
    made = launching.Launch(kernel, (3, 2), [7, 0.5], {"TILE": 4, "num_warps": 8, "WIDE": True})
    made.calls = kernel.calls
    return made


def test_the_second_launch_is_direct_and_passes_constants_in_the_kernel_s_order(launch, monkeypatch):
    monkeypatch.setattr(launching, "_DIRECT", True)
    assert not launch.direct
    launch("x", "y")
    assert launch.direct
    launch("u", "v")
    first, second = launch.calls
    assert first == ("triton", (3, 2, 1), ("x", "y", 7, 0.5), {"TILE": 4, "num_warps": 8, "WIDE": True})
    assert second == ("compiled", (3, 2, 1), ("u", "v", 7, 0.5, 4, True))


def test_other_versions_of_triton_launch_as_they_always_do(launch, monkeypatch):
    monkeypatch.setattr(launching, "_DIRECT", False)
    launch("x", "y")
    launch("u", "v")
    assert not launch.direct
    assert [call[0] for call in launch.calls] == ["triton", "triton"]
