"""What a result was made with is told truly, and what is not installed is left out."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

from pipeline import versions


def test_versions_are_those_that_run() -> None:
    found = versions.versions()
    assert found["python"] == platform.python_version()
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert found["cached-feature-pipeline"] == metadata.version("cached-feature-pipeline")


def test_a_package_that_is_not_installed_is_left_out() -> None:
    found = versions.versions(("numpy", "no-such-package"))
    assert list(found) == ["python", "cached-feature-pipeline", "numpy"]


def test_a_machine_has_a_name_and_a_kind() -> None:
    assert sorted(versions.machine()) == ["host", "platform"]
    assert platform.system() in versions.machine()["platform"].replace("macOS", "Darwin")
