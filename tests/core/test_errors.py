"""What errors say: the cause and what to do about it, nothing that is unsafe, and a short name on the page.

The texts are read from the source, all of them: no error can be raised that this file has not looked at.
"""

import ast
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fantasyid_core import errors
from fantasyid_core.errors import FantasyIDError, cause
from fantasyid_core.io import formats
from tools.environment import ROOT

KINDS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, FantasyIDError)}
# Verbs with which a cure begins. "expected" and "must" say what is right, not what to do.
TO_DO = (
    "accept|check|choose|connect|convert|copy|crop|cut|delete|divide|download|draw|encode|export|free|get|give|install|"
    "leave|load|lower|make|move|open|paint|pack|pick|press|put|raise|reduce|reinstall|remove|rename|repair|repeat|run|save|"
    "select|set|switch|take|tick|turn|unpack|update|use|write"
)
# A cure is a clause that begins with one of them: at the message's or a sentence's begin, or after a mark or "or".
CURE = re.compile(rf"(^|[.:;,(…] |\b(or|and|then|first|please|run) )({TO_DO})\b", re.IGNORECASE)
UNSAFE = re.compile(
    r"weights_only|allow_pickle|trust_remote_code|add_safe_globals|verify\s*=\s*False|--no-verify|--trusted-host|"
    r"--break-system-packages|chmod|\bsudo\b|as (root|administrator)|(disable|switch off) .*(antivirus|firewall|check)|"
    r"\| *(ba)?sh\b|pickle\.load|\bhttp://",
    re.IGNORECASE,
)
# What catches other libraries' errors, whose texts may hold advice.
FOREIGN = {"Exception", "BaseException", "RuntimeError", "ImportError", "UnpicklingError"}
FROM_TABLE = "fantasyid_core/io/formats.py"  # its cures are in `BEGINNINGS`


@dataclass
class Source:
    """A module and what its names for texts stand for."""

    path: Path
    tree: ast.Module

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()


def sources() -> list[Source]:
    files = sorted(path for package in ("fantasyid_core", "nodes") for path in (ROOT / package).rglob("*.py"))
    return [Source(path, ast.parse(path.read_text("utf-8"))) for path in files]


SOURCES = sources()
TEXTS = {
    target.id: text
    for source in SOURCES
    for node in source.tree.body
    if isinstance(node, ast.Assign)
    for target in node.targets
    if isinstance(target, ast.Name)
    if (
        text := "".join(
            x.value for x in ast.walk(node.value) if isinstance(x, ast.Constant) and isinstance(x.value, str)
        )
    )
}


def written(node: ast.expr) -> str:
    """The text of a message; "…" for what is known at run time only, and constants of modules by their value."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(written, parts))
        case ast.FormattedValue(value=value):
            return written(value)
        case ast.BinOp(left=left, right=right):
            return written(left) + written(right)
        case ast.IfExp(body=body, orelse=other):
            return min(written(body), written(other), key=lambda text: bool(CURE.search(text)))
        case ast.Call(func=ast.Attribute(attr="join"), args=[ast.List(elts=parts)]):
            return " ".join(map(written, parts))
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in TEXTS and name.isupper():
            return TEXTS[name]
    return "…"


def raised() -> Iterator[tuple[str, ast.Call]]:
    """Where one of the pack's own errors is made, and the call; not where one is passed on with more in front."""
    for source in SOURCES:
        passed_on = {
            id(node)
            for handler in ast.walk(source.tree)
            if isinstance(handler, ast.ExceptHandler) and caught_by(handler) <= KINDS
            for node in ast.walk(handler)
        }
        for node in ast.walk(source.tree):
            made = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS
            if made and id(node) not in passed_on and source.name != FROM_TABLE:
                yield f"{source.name}:{node.lineno}", node


def caught_by(handler: ast.ExceptHandler) -> set[str]:
    kinds = getattr(handler.type, "elts", [handler.type])
    return {ast.unparse(kind).rpartition(".")[2] for kind in kinds if kind}


def test_every_error_says_what_to_do():
    found = {place: written(call.args[0]) for place, call in raised()}
    assert len(found) > 150
    assert {place: text for place, text in found.items() if not CURE.search(text)} == {}
    assert [cure for *_, cure in formats.BEGINNINGS if not CURE.search(cure)] == []


def test_the_rule_for_a_cure_can_fail():
    for text in ("The mesh is damaged.", "Expected one mask.", "It must be from 1 to 50; got 0.", "No such file.", ""):
        assert not CURE.search(text)
    for text in ("It is damaged: export it again.", "Not there. Copy it there.", "Free some space or choose another."):
        assert CURE.search(text)


def test_no_text_advises_what_is_unsafe():
    found = []
    for source in SOURCES:
        documents = {
            id(node.body[0].value)
            for node in ast.walk(source.tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body
            if isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
                found += [f"{source.name}:{node.lineno}: {node.value}"] if UNSAFE.search(node.value) else []
    allowed = "weights_only|allow_pickle|trust_remote_code|add_safe_globals"  # what `errors.cause` looks for
    assert [text for text in found if not text.endswith(f": {allowed}")] == []


def test_what_other_libraries_say_goes_through_the_filter():
    """Their errors are quoted by `errors.cause` alone, which leaves out advice such as PyTorch's."""
    bare = []
    for source in SOURCES:
        for handler in (node for node in ast.walk(source.tree) if isinstance(node, ast.ExceptHandler)):
            if not caught_by(handler) & FOREIGN or handler.name is None:
                continue
            for node in (x for statement in handler.body for x in ast.walk(statement)):
                if isinstance(node, ast.FormattedValue) and quotes(node.value, handler.name):
                    bare.append(f"{source.name}:{node.lineno}")
    assert bare == []


def quotes(value: ast.expr, name: str) -> bool:
    """Whether an error itself is put into a text, or as `str` or `repr` of it."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in ("str", "repr"):
        value = value.args[0]
    return isinstance(value, ast.Name) and value.id == name


@pytest.mark.parametrize("advice", ["set `weights_only=False`", "pass allow_pickle=True", "use trust_remote_code=True"])
def test_advice_of_other_libraries_is_left_out(advice: str):
    assert cause(ValueError(f"Cannot load. To load it, {advice}.")) == "ValueError"


def test_nodes_raise_only_the_packs_own_errors():
    """So that the node's name comes in front of each (`nodes/host/base.py`), and the page shows it as ours."""
    others = []
    for source in (source for source in SOURCES if source.name.startswith("nodes/")):
        translated = {
            id(node)
            for block in ast.walk(source.tree)
            if isinstance(block, ast.With) and "configured(" in ast.unparse(block.items[0])
            for node in ast.walk(block)
        }
        for node in (x for x in ast.walk(source.tree) if isinstance(x, ast.Raise) and isinstance(x.exc, ast.Call)):
            kind = ast.unparse(node.exc.func)
            if kind not in {*KINDS, "NotImplementedError", "error", "type(error)"} and id(node) not in translated:
                others.append(f"{source.name}:{node.lineno}: {kind}")
    assert others == []


@pytest.mark.parametrize("name", sorted(KINDS))
def test_the_page_shows_a_short_name_and_errors_survive_pickling(name: str):
    """ComfyUI shows `__module__` and `__qualname__`; processes of an evaluation send errors to each other."""
    kind = getattr(errors, name)
    assert f"{kind.__module__}.{kind.__qualname__}" == f"FantasyID.{name}"
    again = pickle.loads(pickle.dumps(kind("It is damaged: export it again.")))
    assert type(again) is kind
    assert str(again) == "It is damaged: export it again."
