"""The import rule, read from the sources: a module imports only what stands below it.

The library stands in one order, lowest first. Every module that is not in it is a stage: it may import all of
the library, but no other stage, with the exceptions below. The command line stands on top.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import house
import pytest
from house import HEAVY

PACKAGE = Path(__file__).parents[1] / "pipeline"

#: The map, which stands where a reader looks first.
MAP = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text())) or ""
#: What stands left of a package is what it may import; two at one place do not import each other.
RULE = next(line.strip() for line in MAP.splitlines() if " < " in line)
FLOORS = [floor.split(", ") for floor in RULE.split(" < ")]
#: Modules beside the packages; every other one is ground.
ON_TOP = {"cli": "cli", "__main__": "cli", "__init__": "cli", "feature_extractor": "commands", "scores": "heads"}
#: Commands that are made of others.
OF_OTHERS = ("run", "demo")

#: Package -> the only place that imports it.
ONLY_IN = {"h5py": "store", "click": "cli"}

#: What is imported without any of `HEAVY`.
LIGHT = (
    "errors",
    "registry",
    "text",
    "files",
    "metrics",
    "progress",
    "config",
    "devices",
    "images.decoding",
    "sources",
    "cli",
)

#: Calls that may run what is in a file.
UNPICKLES = re.compile(r"(pickle|cloudpickle|dill|marshal|shelve|joblib)\.(loads?|open|Unpickler)|eval|exec")


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text())


def unit(module: str) -> str:
    """``pipeline.store.reader`` is a part of the unit ``store``."""
    return module.split(".")[1]


def imports(module: str, *, at_module_level: bool = False) -> Iterator[str]:
    """Dotted names that a module imports; ``from pipeline import files`` is pipeline.files."""
    nodes = _run_on_import(tree(module)) if at_module_level else ast.walk(tree(module))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            assert node.module is not None
            yield from (_as_module(f"{node.module}.{alias.name}", node.module) for alias in node.names)


def _as_module(name: str, parent: str) -> str:
    return name if name in SOURCES else parent


def _run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        is_for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not is_for_types and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _run_on_import(child)


def our_imports(module: str) -> set[str]:
    return {name for name in imports(module) if name.startswith("pipeline.")}


def package(module: str) -> str:
    """``pipeline.store.reader`` is of the package ``store``, ``pipeline.files`` of the ground."""
    name = unit(module)
    packages = {name for floor in FLOORS for name in floor}
    return ON_TOP.get(name) or (name if name in packages else "ground")


def floor(module: str) -> int:
    return next(height for height, packages in enumerate(FLOORS) if package(module) in packages)


def is_allowed(importer: str, imported: str) -> bool:
    """Whether one module may import another."""
    if package(importer) == package(imported):
        return package(importer) != "commands" or importer.split(".")[-1] in OF_OTHERS or "results" in imported
    return floor(imported) < floor(importer)


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_imports_only_what_stands_below_it(module: str) -> None:
    wrong = [name for name in our_imports(module) if not is_allowed(module, name)]
    assert not wrong, f"{module} imports {', '.join(wrong)}: {RULE}"


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("pipeline.heads.svm", "pipeline.store", True),
        ("pipeline.store.reader", "pipeline.heads.svm", False),
        ("pipeline.files", "pipeline.sources", False),
        ("pipeline.sources.tars", "pipeline.files", True),
        ("pipeline.commands.extract", "pipeline.store", True),
        ("pipeline.commands.extract", "pipeline.commands.predict", False),
        ("pipeline.commands.extract", "pipeline.commands.results", True),
        ("pipeline.commands.run", "pipeline.commands.extract", True),
        ("pipeline.models.folder", "pipeline.training.loop", False),
        ("pipeline.training.loop", "pipeline.models.folder", False),
        ("pipeline.commands.extract", "pipeline.cli", False),
        ("pipeline.cli", "pipeline.commands.extract", True),
    ],
)
def test_the_rule_itself(importer: str, imported: str, *, allowed: bool) -> None:
    assert is_allowed(importer, imported) is allowed


def test_the_map_names_every_room_and_no_other() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if not path.name.startswith("__") and path.suffix in (".py", "")}
    named = set(re.findall(r"^    ([a-z_]+(?:/|\.py))", MAP, re.MULTILINE))
    assert named == {room if room.endswith(".py") else f"{room}/" for room in rooms}
    packages = {name for floor in FLOORS for name in floor} - {"ground", "cli"} | {"config"}  # of the ground
    assert packages == {room for room in rooms if not room.endswith(".py")}


#: Words that begin a clause, not a sentence with a verb or the name of a thing.
CLAUSES = ("What", "Whether", "How", "Which", "Where")


@pytest.mark.parametrize("module", sorted(module for module in SOURCES if not module.startswith("pipeline.heads")))
def test_docstrings_begin_with_a_verb_or_a_noun(module: str) -> None:
    """Of modules, classes and properties too, which pydocstyle's D401 leaves alone."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree(module)) if isinstance(node, kinds)]
    assert [text for text in texts if text.startswith(CLAUSES)] == []


def test_every_module_has_a_test_file_of_its_name() -> None:
    missing = [f"tests/{house.test_file(module)} for pipeline/{module}" for module in house.untested(PACKAGE)]
    assert not missing, f"write {', '.join(missing)}"


def test_the_top_of_the_package_stays_small() -> None:
    assert len(house.top_files(PACKAGE)) <= 15


def test_the_batch_size_passes_few_hands() -> None:
    found = house.stations(PACKAGE)
    assert "config/__init__.py:EngineSettings" in found
    assert len(found) <= 4, f"--batch-size passes {', '.join(sorted(found))}"


def test_no_modules_import_each_other() -> None:
    graph = {module: {n for n in imports(module, at_module_level=True) if n in SOURCES} for module in SOURCES}
    # A package's __init__ gathers its parts; a part reaches it only by name, never for what it gathers.
    assert list(TopologicalSorter({module: names - {module} for module, names in graph.items()}).static_order())


@pytest.mark.parametrize(("package", "place"), ONLY_IN.items())
def test_one_place_imports_it(package: str, place: str) -> None:
    users = {unit(module) for module in SOURCES for name in imports(module) if name.split(".")[0] == package}
    assert users <= {place}


HELP = """
import runpy, sys
sys.argv = ["pipeline", "--help"]
try:
    runpy.run_module("pipeline", run_name="__main__")
except SystemExit as end:
    assert not end.code
"""


def modules_after(code: str) -> set[str]:
    """The packages that an interpreter has imported after running `code`."""
    code += "\nimport sys; print('|'.join({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split("|"))


def test_help_loads_nothing_heavy() -> None:
    loaded = modules_after(HELP)
    assert "click" in loaded
    assert not loaded & set(HEAVY)


def test_light_modules_load_nothing_heavy() -> None:
    loaded = modules_after("import pipeline\n" + "\n".join(f"import pipeline.{module}" for module in LIGHT))
    assert not loaded & set(HEAVY)


#: Stages whose work is not done in a network, and what else each of them needs.
WITHOUT_NETWORKS = {
    "fit_head": {"h5py"},
    "evaluate": {"h5py"},
    "info": {"h5py"},
    "verify": {"h5py"},
    "merge": {"h5py"},
    "compare": {"h5py"},
    "predict": set[str](),
    "label": set[str](),
    "fetch": set[str](),
}


@pytest.mark.parametrize(("stage", "needed"), WITHOUT_NETWORKS.items())
def test_a_stage_imports_what_it_always_needs(stage: str, needed: set[str]) -> None:
    """Torch and torchvision are 700 MB and 2 s, which streaming a large file leaves no room for."""
    assert modules_after(f"import pipeline.commands.{stage}") & set(HEAVY) == needed


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_is_ever_unpickled(module: str) -> None:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call):
            called, place = ast.unparse(node.func), f"{module}:{node.lineno}"
            assert not UNPICKLES.fullmatch(called), f"{place} calls {called}"
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called == "torch.load":
                assert options.get("weights_only") == "True", f"{place} loads without weights_only=True"
            if called in ("np.load", "numpy.load"):
                assert options.get("allow_pickle") == "False", f"{place} loads without allow_pickle=False"
