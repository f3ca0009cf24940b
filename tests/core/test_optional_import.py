"""Optional packages: what is used of them is imported at once; what fails is said with the command that cures it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fantasyid_core.errors import PackageMissingError
from fantasyid_core.optional_import import require
from tools.environment import ROOT

LAZY = """
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise ImportError("cannot import name 'FLAX_WEIGHTS_NAME' from 'transformers.utils'")
"""


@pytest.fixture
def lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that imports, and fails where a name of it is first used, as diffusers 0.35.0 with transformers 5."""
    (tmp_path / "lazy_package").mkdir()
    (tmp_path / "lazy_package" / "__init__.py").write_text(LAZY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lazy_package", raising=False)
    return "lazy_package"


def test_a_lazy_package_fails_where_it_is_required_with_the_command_that_cures_it(lazy: str):
    assert require(lazy, "The test").__name__ == lazy
    with pytest.raises(PackageMissingError) as caught:
        require(lazy, "The test", names=["Thing"])
    assert str(caught.value).startswith(f"The test needs the Python package '{lazy}', which could not be imported")
    assert "FLAX_WEIGHTS_NAME" in str(caught.value)
    assert f"python -m pip install --upgrade {lazy}" in str(caught.value), "pip does nothing for what is installed"


def test_an_old_version_without_a_name_is_to_be_brought_up_to_date():
    with pytest.raises(PackageMissingError, match=r"no attribute 'nothing'.*pip install --upgrade json"):
        require("json", "The test", names=["nothing"])


def test_a_package_that_is_not_there_is_to_be_installed():
    with pytest.raises(PackageMissingError, match=r"Install it into ComfyUI's Python with: .* install 'absent>=2'$"):
        require("absent.part", "The test", "'absent>=2'")


def test_diffusers_that_fails_late_is_the_pack_s_own_error(tmp_path: Path):
    (tmp_path / "diffusers").mkdir()
    (tmp_path / "diffusers" / "__init__.py").write_text(LAZY)
    code = (
        "from fantasyid_core.errors import PackageMissingError\n"
        "from fantasyid_core.optional_import import require_diffusers\n"
        "try: require_diffusers('The sampler')\n"
        "except PackageMissingError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "The sampler needs the Python package 'diffusers'" in done.stdout
    assert "python -m pip install --upgrade 'diffusers>=0.35' transformers" in done.stdout


def _imports(file: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Absolute module → names of every `from … import …` of a file that is not for type checkers alone."""
    tree = ast.parse(file.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    package = file.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level] if node.level else ()
            module = ".".join((*base, *(node.module or "").split("."))).strip(".")
            yield module, tuple(name.name for name in node.names)


def test_nothing_of_diffusers_is_imported_but_what_is_required_first():
    """Not by a node, through whichever of the core's modules: what fails then has no command that cures it."""
    waiting, visited, used = sorted((ROOT / "nodes").rglob("*.py")), set(), set()
    while waiting:
        file = waiting.pop()
        if file in visited or not file.is_file():
            continue
        visited.add(file)
        for module, names in _imports(file):
            if module.split(".")[0] == "diffusers":
                used |= {(module, name) for name in names}
            for name in (module, *(f"{module}.{name}" for name in names)):
                waiting.append((ROOT / name.replace(".", "/")).with_suffix(".py"))
    assert len(visited) > 50
    assert not used
