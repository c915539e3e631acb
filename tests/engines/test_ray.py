"""What a cluster is called, how a node is cut into actors, and what is said where there is none."""

from __future__ import annotations

import sys

import pytest

from pipeline.engines.ray import Share, connected, parse
from pipeline.errors import EngineError, SettingsError


def test_an_address_follows_the_word() -> None:
    assert (parse("ray"), parse("ray:auto"), parse("ray:127.0.0.1:6379")) == (None, "auto", "127.0.0.1:6379")
    for wrong in ("dask", "ray:", "rays"):
        with pytest.raises(SettingsError, match="is no cluster"):
            parse(wrong)


@pytest.mark.parametrize(
    ("share", "resources", "actors"),
    [
        (Share(None, "auto"), {"CPU": 8.0}, [(8.0, 0)]),
        (Share(None, "auto"), {"CPU": 64.0}, [(8.0, 0)] * 8),
        (Share(2, "auto"), {"CPU": 4.0}, [(2.0, 0)] * 2),
        (Share(4, "cpu"), {"CPU": 2.0}, [(2.0, 0)]),
        (Share(None, "auto"), {"CPU": 8.0, "GPU": 4.0}, [(2.0, 1)] * 4),
        (Share(None, "cpu"), {"CPU": 4.0, "GPU": 4.0}, [(4.0, 0)]),
        (Share(None, "cuda"), {"CPU": 4.0}, []),
        (Share(None, "auto"), {}, []),
    ],
)
def test_a_node_is_cut_into_actors(share: Share, resources: dict[str, float], actors: list[tuple[float, int]]) -> None:
    assert share.actors(resources) == actors


@pytest.mark.parametrize("on", ["ray:127.0.0.1:1", "ray:auto"])
def test_a_cluster_that_does_not_answer_is_an_error_at_once(on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(EngineError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"), connected(on):
        pass


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"pip install 'cached-feature-pipeline\[ray\]'"), connected("ray"):
        pass
