"""How the package is laid out, in numbers: `python tests/house.py [FOLDER_OF_A_PACKAGE ...]`, a column each."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parents[1] / "pipeline"

#: What costs a noticeable part of a second, or of a gigabyte.
HEAVY = (
    *("torch", "torchvision", "sklearn", "scipy", "matplotlib", "h5py", "pandas", "pyarrow"),
    *("onnx", "onnxruntime", "joblib", "skops", "timm", "safetensors", "jinja2", "sympy"),
)


@cache
def modules(package: Path) -> dict[Path, ast.Module]:
    """Every file of the package, by its path inside of it."""
    return {path.relative_to(package): ast.parse(path.read_text()) for path in sorted(package.rglob("*.py"))}


def test_file(module: Path) -> Path:
    """Where the tests of a module are, from the folder of tests."""
    name = module.stem.strip("_")
    return module.with_name(f"test_{name if name != 'init' or len(module.parts) == 1 else module.parent.name}.py")


def untested(package: Path) -> list[Path]:
    """The modules without a test file of their name; what is nothing but a docstring needs none."""
    busy = [path for path, tree in modules(package).items() if not all(isinstance(n, ast.Expr) for n in tree.body)]
    return [path for path in busy if not (package.parent / "tests" / test_file(path)).exists()]


def top_files(package: Path) -> list[Path]:
    """The modules that are in no package, without those that Python asks for, __init__ and __main__."""
    return [path for path in modules(package) if len(path.parts) == 1 and not path.name.startswith("__")]


def docstrings(package: Path) -> Iterator[ast.Constant]:
    for tree in modules(package).values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                first = node.body[0]
                assert isinstance(first, ast.Expr)
                assert isinstance(first.value, ast.Constant)
                yield first.value


def code_lines(package: Path) -> int:
    """Lines that are neither blank nor a comment nor a docstring."""
    lines = [line.strip() for path in modules(package) for line in (package / path).read_text().splitlines()]
    said = sum((one.end_lineno or 0) - one.lineno + 1 for one in docstrings(package))
    blank_in_docstrings = sum(not line.strip() for one in docstrings(package) for line in str(one.value).split("\n"))
    ends = sum(str(one.value).endswith((" ", "\n")) for one in docstrings(package))  # the last line is the quotes
    return sum(bool(line) and not line.startswith("#") for line in lines) - said + blank_in_docstrings - ends


def arrows(package: Path) -> set[tuple[str, str]]:
    """Which entry at the top of the package imports which."""
    found = set()
    for path, tree in modules(package).items():
        for node in ast.walk(tree):
            for name in _imported(node):
                found.add((path.parts[0].removesuffix(".py"), name.split(".")[1]))
    rooms = {path.parts[0].removesuffix(".py") for path in modules(package)}
    return {(one, other) for one, other in found if one != other and other in rooms}


def _imported(node: ast.AST) -> list[str]:
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if name.startswith("pipeline.")]


def stations(package: Path, option: str = "batch_size") -> set[str]:
    """Functions and classes that --batch-size passes, which is a number or auto: they declare it, or hand it to one."""
    scopes = {
        f"{path}:{node.name}": node
        for path, tree in modules(package).items()
        if path.name != "options.py"  # types alone, generated
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    declared = {place for place, scope in scopes.items() if any(_declares(node, option) for node in ast.walk(scope))}
    names = {place.rpartition(":")[2] for place in declared}
    return declared | {
        place
        for place, scope in scopes.items()
        for node in ast.walk(scope)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in names
        and option in {keyword.arg for keyword in node.keywords}
    }


def _declares(node: ast.AST, option: str) -> bool:
    if isinstance(node, ast.AnnAssign):
        return ast.unparse(node.target) == option and "auto" in ast.unparse(node.annotation)
    is_it = isinstance(node, ast.arg) and node.arg == option and node.annotation is not None
    return is_it and "auto" in ast.unparse(node.annotation)  # type: ignore[attr-defined]


def figures(package: Path) -> dict[str, object]:
    """The numbers, by what they count."""
    known = modules(package)
    tested = len(known) - len(untested(package)) - _without_code(package)
    return {
        "files at the top": len(top_files(package)),
        "entries at the top (files and packages)": len({path.parts[0] for path in known}),
        "modules": len(known),
        "lines": sum(len((package / path).read_text().splitlines()) for path in known),
        "lines of code": code_lines(package),
        "modules with a test file of their name": f"{tested} of {len(known) - _without_code(package)}",
        'docstrings that begin with "What"': sum(str(one.value).startswith("What") for one in docstrings(package)),
        "imports between entries": len(arrows(package)),
        "stations of --batch-size": len(stations(package)),
    }


def _without_code(package: Path) -> int:
    return sum(all(isinstance(node, ast.Expr) for node in tree.body) for tree in modules(package).values())


if __name__ == "__main__":
    columns = [figures(Path(name).resolve()) for name in sys.argv[1:] or [str(HERE)]]
    for row in columns[0]:
        print(f"{row:42}", *(f"{column[row]!s:>12}" for column in columns))
