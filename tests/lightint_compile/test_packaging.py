"""The package as it is installed: every folder listed, the backend found, imports cheap."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_folder_with_an_init_file_is_listed() -> None:
    found = set()
    for name, folder in SETUPTOOLS["package-dir"].items():
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join([name, *parts]))
    assert found == set(SETUPTOOLS["packages"])


def test_every_folder_of_python_files_is_a_package() -> None:
    for folder in SETUPTOOLS["package-dir"].values():
        for module in (ROOT / folder).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), module


def test_the_package_has_one_version() -> None:
    import lightint_compile

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == lightint_compile.__version__


def test_no_function_hides_behind_a_package_of_its_name() -> None:
    import lightint_compile

    for name in lightint_compile.__all__:
        getattr(lightint_compile, name)
    for name in lightint_compile.__all__:
        assert not isinstance(getattr(lightint_compile, name), type(sys)), f"{name} is a module"


def _seconds_of_import(module: str) -> float:
    """Cumulative import seconds by the interpreter's own clock: the best of three, as others share the machine."""
    done = [
        subprocess.run([sys.executable, "-X", "importtime", "-c", f"import {module}"], capture_output=True, text=True)
        for _ in range(3)
    ]
    pattern = re.compile(rf"\|\s*(\d+) \|\s*{re.escape(module)}$", re.MULTILINE)
    return min(int(pattern.search(run.stderr)[1]) for run in done) / 1e6  # type: ignore[index]


def test_importing_the_package_takes_milliseconds() -> None:
    assert _seconds_of_import("lightint_compile") < 0.05


def test_importing_the_package_or_its_options_loads_neither_torch_nor_triton() -> None:
    code = (
        "import sys, lightint_compile; from lightint_compile import LightintOptions, LightintError; LightintOptions()\n"
        "assert not {'torch', 'triton', 'onnx', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_torch_finds_the_backend_by_itself_and_the_backend_loads_no_optional_package() -> None:
    code = (
        "import sys, torch._inductor.compile_fx; assert 'lightint' in torch._dynamo.list_backends()\n"
        "before = set(sys.modules); assert 'lightint_compile' not in before\n"
        "import lightint_compile.backend, lightint_compile.explaining, lightint_compile.exporting\n"
        "loaded = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "assert not {'triton', 'onnx', 'onnxscript', 'diffusers', 'typer', 'matplotlib'} & loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
