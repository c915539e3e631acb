"""What a contributor is told is there: files, names, and the programs that run before a commit."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
QUESTIONS = re.findall(r"^\| (.+?) \| `(\S+)` \| `(\w+)` \|$", TEXT, re.MULTILINE)
#: Paths in backquotes; those with NAME are of what is to be added.
PATHS = sorted(set(re.findall(r"`((?:pipeline|tests|\.ci|configs)/[\w./]*)`", TEXT)))


@pytest.mark.parametrize("path", [path for path in PATHS if "NAME" not in path])
def test_what_is_named_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_fifteen_questions_are_answered() -> None:
    assert len(QUESTIONS) == 15


@pytest.mark.parametrize(("question", "file", "name"), QUESTIONS)
def test_an_answer_is_a_function_or_a_class_of_its_file(question: str, file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert name in defined, question


def test_the_hooks_are_the_programs_of_ci() -> None:
    hooks = re.findall(r"entry: (\w+)", (ROOT / ".pre-commit-config.yaml").read_text())
    ci = (ROOT / ".ci" / "run").read_text()
    assert hooks == ["ruff", "ruff", "mypy"]
    assert all(re.search(rf"^{hook}\b", ci, re.MULTILINE) for hook in hooks)
