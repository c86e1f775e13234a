"""The house: what each file may import, as docs/development.md says, and what it may not do."""

import ast
import importlib.metadata
import json
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import kafka
import pytest

from conftest import REPOSITORY, SCRIPTS, Scripts
from processes import SOURCES
from streaming.kafka_version import VERSION

DEMO = [f"demo/{path.name}" for path in (REPOSITORY / "demo").glob("*.py")]
ROOMS = {path: ast.parse((REPOSITORY / path).read_text("utf-8")) for path in [*SOURCES, *DEMO]}
PRODUCT = {path: ROOMS[path] for path in SOURCES}
INTERNALS = "streaming/kafka_internals.py"
# The documented modules of kafka-python, and what kafka itself exports
DOCUMENTED = {"kafka.admin", "kafka.errors", "kafka.structs"}
EXPORTED = {"kafka", *(f"kafka.{name}" for name in kafka.__all__), *DOCUMENTED}
# What outlives a call: the texts that no message may show, and what Windows is to call
STATE = {("streaming/console.py", "_secrets"), ("streaming/windows.py", "_handlers")}
EMPTY = ("{}", "[]", "set()", "dict()", "list()")

# Prints, for each module, the names of what importing it changes in its process. The packages are
# imported beforehand, as a library's own logger is the library's business
IMPORT = """
import gc, importlib, json, logging, signal, sys, threading
import dotenv, kafka, requests

def state():
    loggers = {name: logging.getLogger(name) for name in ("root", "kafka")}
    return {
        "hooks": [sys.excepthook, sys.unraisablehook, threading.excepthook],
        "threads": threading.enumerate(),
        "gc thresholds": gc.get_threshold(),
        "wakeup descriptor": signal.set_wakeup_fd(-1),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "handlers": [list(each.handlers) for each in loggers.values()],
        "levels": [(each.level, each.propagate) for each in loggers.values()],
    }

changed = {}
before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
    after = state()
    changed[name] = [key for key, value in after.items() if value != before[key]]
    before = after
print(json.dumps(changed))
"""


# ------------------------------------------------------------------ what a file imports


def table() -> dict[str, set[str]]:
    """What docs/development.md lets each file import."""
    page = (REPOSITORY / "docs" / "development.md").read_text("utf-8")
    rows = re.findall(r"^\| `([\w/-]+\.py)` \| [^|]+ \| ([^|]*) \|$", page, re.MULTILINE)
    assert len(rows) == len(dict(rows)), "each file has one row"
    return {path: set(re.findall(r"`([\w.-]+)`", cell)) for path, cell in rows}


def imported(tree: ast.AST) -> Iterator[str]:
    """The full names of what is imported, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from (f"{node.module}.{each.name}" for each in node.names)


def rooms_imported(tree: ast.AST) -> set[str]:
    """The rooms and the packages that are imported, without the standard library."""
    names = [name.split(".") for name in imported(tree)]
    return {
        name[1] if name[0] == "streaming" else name[0]
        for name in names
        if name[0] not in sys.stdlib_module_names
    }


def test_each_file_imports_what_the_table_says() -> None:
    rooms = {path: tree for path, tree in ROOMS.items() if path != "streaming/__init__.py"}
    assert table() == {path: rooms_imported(tree) for path, tree in rooms.items()}


def test_the_arrows_go_one_way() -> None:
    TopologicalSorter({Path(path).stem: names for path, names in table().items()}).prepare()
    for path, names in table().items():
        assert names.isdisjoint(SCRIPTS), path
        if path.startswith("streaming/"):
            assert names.isdisjoint({"config", "dotenv"}), path
            foreign = "kafka" if path.startswith("streaming/x_") else ("x_", "requests")
            assert not [name for name in names if name.startswith(foreign)], path


# ------------------------------------------------------------------ kafka-python's internals


def own_private_names() -> set[str]:
    """The attributes and methods that the files themselves define, with an underscore in front."""
    nodes = [node for tree in PRODUCT.values() for node in ast.walk(tree)]
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    fields = [node for node in nodes if isinstance(node, ast.Attribute | ast.Name)]
    return names | {
        node.attr if isinstance(node, ast.Attribute) else node.id
        for node in fields
        if isinstance(node.ctx, ast.Store)
    }


def foreign_uses(tree: ast.AST) -> Iterator[str]:
    """What is private to others, what is not documented, and attributes set on others' classes."""
    own = own_private_names()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            is_private = re.match("_(?!_|exit$|replace$)", node.attr)
            is_own = owner in ("self", "cls") and node.attr in own
            is_patched = isinstance(node.ctx, ast.Store) and owner[0].isupper()
            if (is_private and not is_own) or is_patched:
                yield ast.unparse(node)
    for name in imported(tree):
        is_documented = name in EXPORTED or name.rpartition(".")[0] in DOCUMENTED
        if re.match(r"kafka\b", name) and not is_documented:
            yield name


def test_one_file_has_all_that_kafka_python_does_not_document() -> None:
    uses = {path: list(foreign_uses(tree)) for path, tree in PRODUCT.items()}
    assert uses.pop(INTERNALS)
    assert uses == {path: [] for path in uses}


def test_kafka_python_is_pinned_to_the_version_whose_internals_were_read() -> None:
    required = (REPOSITORY / "requirements.txt").read_text()
    assert re.findall(r"^kafka-python\[[\w,]+\](.*)$", required, re.MULTILINE) == [f"=={VERSION}"]
    assert importlib.metadata.version("kafka-python") == VERSION


# ------------------------------------------------------------------ importing only defines


def defines(node: ast.stmt) -> bool:
    """Whether a statement outside functions only defines something."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Assign() | ast.AnnAssign():
            return True
        case ast.FunctionDef() | ast.ClassDef() | ast.Expr(ast.Constant()):  # or a docstring
            return True
        case ast.If() if ast.unparse(node.test) == "__name__ == '__main__'":
            return not node.orelse
        case ast.If():
            return is_about_the_platform(node.test) and all(map(defines, node.body + node.orelse))
        case ast.Assert():
            return is_about_the_platform(node.test)
    return False


def is_about_the_platform(condition: ast.expr) -> bool:
    return ast.unparse(condition).startswith(("sys.platform ", "os.name "))


def test_a_file_has_definitions_only() -> None:
    for path, tree in ROOMS.items():
        assert [ast.unparse(node) for node in tree.body if not defines(node)] == [], path


@pytest.mark.versions
def test_an_import_changes_nothing(lone_scripts: Scripts) -> None:
    (lone_scripts.folder / "import_them.py").write_text(IMPORT)
    paths = [path for path in SOURCES if path != "streaming/windows.py"]
    names = [path.removesuffix(".py").replace("/", ".") for path in paths]
    done = lone_scripts.run("import_them", *names, real=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout) == {name: [] for name in names}


def state(tree: ast.Module) -> Iterator[str]:
    """What of a module changes after it was imported: what is empty at first, caches, globals."""
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and node.value and ast.unparse(node.value) in EMPTY:
            yield ast.unparse(node.target)
        if isinstance(node, ast.Assign) and ast.unparse(node.value) in EMPTY:
            yield from map(ast.unparse, node.targets)
    for inner in ast.walk(tree):
        if isinstance(inner, ast.FunctionDef):
            yield from (inner.name for each in inner.decorator_list if "cache" in ast.unparse(each))
        if isinstance(inner, ast.Global):
            yield from inner.names


def test_modules_have_no_state() -> None:
    assert {(path, name) for path, tree in PRODUCT.items() for name in state(tree)} == STATE


def test_the_environment_is_read_in_two_places() -> None:
    reading = re.compile(r"\benvironb?\b|getenv")
    readers = {path for path, tree in PRODUCT.items() if reading.search(ast.unparse(tree))}
    assert readers == {"config.py", "streaming/timing.py"}


def test_each_main_is_a_recipe() -> None:
    """It has at most 25 lines, but for its imports."""
    for script in SCRIPTS:
        functions = (REPOSITORY / f"{script}.py").read_text("utf-8").split("\n\n\n")
        [main] = [text for text in functions if text.startswith("def main(")]
        assert len(re.findall(r"^(?!    from |$).+", main, re.MULTILINE)) <= 25, script
