"""The package as it is installed: every folder listed, the backend found, imports cheap."""

from __future__ import annotations

import ast
import importlib.metadata
import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, TOOLS = PYPROJECT["project"], PYPROJECT["tool"]
SETUPTOOLS = TOOLS["setuptools"]
FOLDERS = tuple(SETUPTOOLS["package-dir"].values())

BROUGHT = {
    "triton": "comes with torch where there is a GPU; kernels and doctor do without it",
    "fa3_fwd_interface": "a peer of the benchmarks, measured where it is installed",
    "fastvideo_kernel": "likewise",
    "cudnn": "likewise",
    "diffusers": "an extra for those who bring its models; end to end, the benchmark decodes with its VAEs",
    "transformers": "of the same extra; end to end, the benchmark encodes texts with its encoders",
}
"""What the package imports where it is there, and why it is not declared."""

EXPECTED_BY_OTHERS = {
    "expecttest": "torch.testing's database of operators imports it",
    "httpx": "starlette's test client sends with it",
}
"""What the tests need without importing it."""

MODULES = {"pillow": "PIL"}
"""What is imported by another name than it is installed by."""

PROGRAMS = ("tests/peers/world_models", "tests/benchmarks/upstream", "tests/benchmarks/packages")
LOADED = {"conftest", *(path.stem for folder in PROGRAMS for path in (ROOT / folder).glob("*.py"))}
"""What tests load besides: pytest's own files, and the parts of a program that a test runs."""


def test_every_folder_with_an_init_file_is_listed() -> None:
    found = set()
    for name, folder in SETUPTOOLS["package-dir"].items():
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join([name, *parts]))
    assert found == set(SETUPTOOLS["packages"])


def _imported(*folders: str) -> set[str]:
    """Packages of others that a folder's modules import, inside of functions as well."""
    found: set[str] = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(str(node.module).partition(".")[0])
    local = {path.stem for path in (ROOT / "tests/support").glob("*.py")} | {"lightint_compile"}
    return found - set(sys.stdlib_module_names) - local


def _declared(requirements: Iterable[str]) -> set[str]:
    names = {re.split(r"[\[<>=; ]", requirement)[0] for requirement in requirements}
    return {MODULES.get(name, name).replace("-", "_") for name in names if name != PROJECT["name"]}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    extras = PROJECT["optional-dependencies"]
    further = _declared(itertools.chain(*(extras[name] for name in ("onnx", "evaluate", "demo", "play", "liveframe"))))
    assert further <= _imported(*FOLDERS)
    assert _imported(*FOLDERS) - set(BROUGHT) - further == _declared(PROJECT["dependencies"])


def test_every_extra_is_imported_by_the_tests_or_run_by_a_target() -> None:
    extras = PROJECT["optional-dependencies"]
    assert (
        _imported("tests") <= _declared(PROJECT["dependencies"]) | _declared(itertools.chain(*extras.values())) | LOADED
    )
    recipes = "".join((ROOT / name).read_text() for name in ("Makefile", ".ci/run", ".ci/types", "mkdocs.yml"))
    settings = {*TOOLS, *TOOLS["pytest"]["ini_options"]}
    words = set(re.findall(r"\w+", recipes)) | settings | _imported(*FOLDERS, "tests") | set(EXPECTED_BY_OTHERS)
    for extra, requirements in extras.items():
        for name in _declared(requirements):
            assert name in words or name.partition("_")[2] in words, f"{name} of the extra {extra} is not used"


def test_every_entry_point_is_there() -> None:
    groups = {"console_scripts": PROJECT["scripts"], **PROJECT["entry-points"]}
    for group, named in groups.items():
        for name, value in named.items():
            assert callable(importlib.metadata.EntryPoint(name, value, group).load())


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
