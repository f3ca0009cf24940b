"""What the documents and the packaging promise, checked against the text of the repository."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from tools.environment import ROOT

README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = [ROOT / name for name in ("README.md", "THIRD_PARTY.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS += [path for folder in ("docs", "docs/log", "web/docs", "models/*") for path in ROOT.glob(f"{folder}/*.md")]
CORE = sorted((ROOT / "fantasyid_core").rglob("*.py"))
LAB = sorted((ROOT / "fantasyid_lab").rglob("*.py"))
NODES = sorted((ROOT / "nodes").rglob("*.py"))
HOST = {"comfy", "comfy_api", "comfy_extras", "execution", "folder_paths", "latent_preview", "node_helpers", "nodes"}
HOST |= {"server", "comfy_execution"}
ALWAYS_THERE = {"torch", "numpy", "safetensors", *sys.stdlib_module_names}
HOST_BRINGS = re.compile(r"torch(vision|audio|sde)?|numpy|pillow|opencv.*|transformers|tokenizers|safetensors|scipy|av")


def named_nodes() -> dict[str, str]:
    """Node id → display name, from the schemas' text."""
    pattern = r'node_id="(\w+)",\s+display_name="([^"]+)"'
    return {node: name for file in NODES for node, name in re.findall(pattern, file.read_text("utf-8"))}


def listed(text: str) -> dict[str, str]:
    """Package → version condition, of requirements."""
    return dict(re.match(r"([\w.-]+)(.*)", line).groups() for line in text.splitlines() if line.strip())


def imports(file: Path, at_import: bool = False) -> Iterator[tuple[int, str, list[str]]]:
    """(level, module, names) of every import in a file; `at_import`: of those that run when the file is imported."""
    stack: list[ast.AST] = [ast.parse(file.read_text("utf-8"))]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names]
        elif at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        elif at_import and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            stack += node.orelse
        else:
            stack += ast.iter_child_nodes(node)


def imported_files(start: Path) -> set[Path]:
    """The repository's files that importing `start` executes."""
    found: set[Path] = set()
    todo = [start]
    while todo:
        file = todo.pop()
        if file in found or not file.is_file():
            continue
        found.add(file)
        for level, module, names in imports(file, at_import=True):
            if level:
                base = file.parents[level - 1].joinpath(*module.split("."))
                todo += [base.with_suffix(".py"), base / "__init__.py", *(base / f"{name}.py" for name in names)]
    return found


def test_every_node_has_a_help_page_and_every_page_a_node():
    assert {page.stem for page in ROOT.glob("web/docs/*.md")} == set(named_nodes())


def test_help_pages_are_titled_with_the_node_s_name():
    for node, name in named_nodes().items():
        assert (ROOT / "web" / "docs" / f"{node}.md").read_text("utf-8").startswith(f"# {name}\n")


def test_the_page_of_the_nodes_has_every_node():
    page = (ROOT / "docs" / "nodes.md").read_text("utf-8")
    missing = [node for node, name in named_nodes().items() if f"## {name}\n\n`{node}`. " not in page]
    assert missing == []


@pytest.mark.parametrize(
    "command",
    [
        *("python run.py demo", "--photo", "--prompt", "python run.py test"),
        *(f"python -m fantasyid_lab.{module}" for module in ("parity", "evaluation", "training")),
    ],
)
def test_readme_names_the_commands(command: str):
    assert command in README


def test_readme_lists_the_workflows_that_there_are():
    listed = {unquote(name) for name in re.findall(r"\(workflows/([^)]+\.json)\)", README)}
    assert listed == {file.name for file in (ROOT / "workflows").glob("*.json")}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_into_the_repository_lead_somewhere(document: Path):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text("utf-8"))
    broken = [link for link in links if "://" not in link and not (document.parent / unquote(link)).exists()]
    assert broken == []


def test_the_log_lists_its_entries_and_every_entry_says_what_came_of_it():
    folder = ROOT / "docs" / "log"
    entries = {path.name for path in folder.glob("*.md")} - {"README.md"}
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", (folder / "README.md").read_text("utf-8"))) >= entries
    for name in entries:
        text = (folder / name).read_text("utf-8")
        assert re.match(r"# .+\n\n" + re.escape(name[:10]) + "\n", text), name
        assert all(f"**{part}.** " in text for part in ("Question", "Change", "Setting", "Verdict")), name


def test_the_parity_document_shows_every_output_that_is_compared():
    lists = re.findall(r'parametrize\(\s+"name",\s+\[(.*?)\n    \],', _parity_tests(), re.S)
    tested = re.findall(r'"(\w+)"', "".join(lists))
    document = (ROOT / "docs" / "parity.md").read_text("utf-8")
    assert len(tested) == 15
    assert [name for name in tested if not re.search(rf"^{name} ", document, re.M)] == []


def _parity_tests() -> str:
    return (ROOT / "tests" / "lab" / "test_parity.py").read_text("utf-8")


def test_requirements_leave_alone_what_the_host_brings():
    requirements = listed((ROOT / "requirements.txt").read_text("utf-8"))
    assert requirements
    assert [name for name in requirements if HOST_BRINGS.fullmatch(name.lower())] == []
    assert all(re.fullmatch(r">=[\d.]+", condition) for condition in requirements.values()), "a pin would downgrade"


def test_pyproject_lists_the_same_requirements_and_a_licence_that_is_there():
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    dependencies = ast.literal_eval(re.search(r"^dependencies = (\[.*?\])", text, re.M | re.S)[1])
    assert dependencies == (ROOT / "requirements.txt").read_text("utf-8").split()
    licence = re.search(r'^license = \{ file = "(.+)" \}', text, re.M)[1]
    assert "Apache License" in (ROOT / licence).read_text("utf-8")


def within(path: Path) -> str:
    """A file's path in the repository, as the tests' names show it."""
    return path.relative_to(ROOT).as_posix()


def test_the_package_holds_every_module_and_data_file():
    """Setuptools finds the packages by their `__init__.py`; what is no module must match a pattern."""
    packages = [("fantasyid_core", CORE), ("fantasyid_lab", LAB)]
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    found = re.search(r"^\[tool.setuptools.packages.find\]\ninclude = (\[.*\])\nnamespaces = false$", text, re.M)
    assert ast.literal_eval(found[1]) == [f"{package}*" for package, _ in packages]
    for package, modules in packages:
        patterns = re.search(rf"^package-data = .*\b{package} = (\[.*?\])", text, re.M)[1]
        root = ROOT / package
        packed = {path for pattern in ast.literal_eval(patterns) for path in root.glob(pattern)}
        others = {path for path in root.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
        assert others <= packed
        assert {file.parent for file in modules} <= {file.parent for file in modules if file.name == "__init__.py"}


@pytest.mark.parametrize("file", CORE, ids=within)
def test_the_core_never_imports_the_host(file: Path):
    assert [module for level, module, _ in imports(file) if not level and module.split(".")[0] in HOST] == []


@pytest.mark.parametrize("file", [ROOT / "__init__.py", *NODES, *CORE], ids=within)
def test_the_pack_imports_itself_relatively(file: Path):
    """The host loads it by path, under a name of its own, and has a top-level `nodes` too."""
    own = {"fantasyid_core", "fantasyid_lab", "nodes", "tools", "tests", "benchmarks"}
    assert [module for level, module, _ in imports(file) if not level and module.split(".")[0] in own] == []


@pytest.mark.parametrize("file", NODES, ids=within)
def test_the_nodes_know_nothing_of_what_is_not_in_the_registry_s_archive(file: Path):
    """Their imports begin above the repository's packages, where import-linter cannot follow."""
    imported = {f"{module}.{name}" for level, module, names in imports(file) if level for name in names or [""]}
    assert {path for path in imported if path.split(".")[0] in {"fantasyid_lab", "tools", "benchmarks"}} == set()


@pytest.mark.parametrize("file", CORE, ids=within)
def test_a_relative_import_of_the_core_stays_in_the_core(file: Path):
    depth = len(file.relative_to(ROOT).parts) - 1  # 1 in fantasyid_core itself
    assert [module for level, module, _ in imports(file) if level > depth] == []


PACKAGES = ("people", "evaluation", "training")  # of the lab: each may need those before it


@pytest.mark.parametrize("file", [file for file in LAB if file.parent.name in PACKAGES], ids=within)
def test_the_lab_s_packages_need_only_those_before_them(file: Path):
    lab, own = ROOT / "fantasyid_lab", file.parent.name
    things = [
        file.parents[level - 1].joinpath(*module.split("."), name)
        for level, module, names in imports(file)
        for name in (names if level else [])
    ]
    named = {thing.relative_to(lab).parts[0] for thing in things}
    assert named.intersection(PACKAGES) <= set(PACKAGES[: PACKAGES.index(own) + 1])


def test_importing_the_pack_needs_no_optional_package():
    files = imported_files(ROOT / "__init__.py")
    assert {file for file in NODES if file.parent.name != "host"} < files
    needed = {
        (file.name, module)
        for file in files
        for level, module, _ in imports(file, at_import=True)
        if not level and module.split(".")[0] not in HOST | ALWAYS_THERE
    }
    assert needed == set()


@pytest.mark.parametrize("node", sorted(named_nodes()))
def test_every_help_page_has_a_small_picture(node: str):
    """Relative to the page, as ComfyUI's help panel asks for it; drawn by tools/assets/help_pictures.py."""
    page = ROOT / "web" / "docs" / f"{node}.md"
    [(alternative_text, name)] = re.findall(r"!\[(.*)\]\((.+)\)", page.read_text("utf-8"))
    assert alternative_text
    assert name == f"pictures/{node}.webp"
    assert (page.parent / name).stat().st_size <= 40_000
    with Image.open(page.parent / name) as picture:
        assert picture.width == 640
