"""Weights: one digest for the same tensors, and one line for a file that does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import images
from safetensors.torch import save_file
from torch import Tensor

from pipeline.bases import feature_network, load_base
from pipeline.errors import BaseError


def changed(state: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    merged = {**state, **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: value for name, value in merged.items() if value is not None}


@pytest.fixture(scope="module")
def resnet() -> dict[str, Tensor]:
    return load_base("resnet18", "none").module.state_dict()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("wrapped", ["bare", "module.", "state_dict"])
def test_the_same_tensors_have_the_same_digest_whatever_holds_them(
    tmp_path: Path, resnet: dict[str, Tensor], suffix: str, wrapped: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    state = {f"module.{name}": value for name, value in resnet.items()} if wrapped == "module." else resnet
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"epoch": 3, "state_dict": state} if wrapped == "state_dict" else state, path)
    base = load_base("resnet18", str(path))
    assert base.digest == load_base("resnet18", "none").digest
    assert base.classes is None
    assert base.missing == frozenset()


def test_half_precision_is_read_as_float(tmp_path: Path, resnet: dict[str, Tensor]) -> None:
    save_file(
        {name: value.half() if value.is_floating_point() else value for name, value in resnet.items()},
        tmp_path / "half.safetensors",
    )
    base = load_base("resnet18", str(tmp_path / "half.safetensors"))
    assert {value.dtype for value in base.module.parameters()} == {torch.float32}


def test_another_number_of_classes_is_built(tmp_path: Path, resnet: dict[str, Tensor]) -> None:
    state = changed(resnet, fc__weight=torch.zeros(2, 512), fc__bias=torch.zeros(2))
    save_file(state, tmp_path / "two.safetensors")
    base = load_base("resnet18", str(tmp_path / "two.safetensors"))
    assert feature_network(base, ["fc"]).shapes == [(2,)]


@pytest.mark.parametrize("extra", [{}, {"fc.1.weight": torch.zeros(9, 512), "fc.1.bias": torch.zeros(9)}])
def test_a_classifier_that_is_missing_or_another_is_no_matter_until_it_is_asked_for(
    tmp_path: Path, resnet: dict[str, Tensor], extra: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    state = {**changed(resnet, fc__weight=None, fc__bias=None), **extra}
    save_file(state, tmp_path / "trunk.safetensors")
    base = load_base("resnet18", str(tmp_path / "trunk.safetensors"))
    assert "no fitting classifier" in caplog.text
    with torch.no_grad():
        assert bool(feature_network(base, ["avgpool"])(images(64))[0].isfinite().all())
    with pytest.raises(BaseError, match=r"layer fc of resnet18 needs fc.bias, which .*trunk.safetensors does not have"):
        feature_network(base, ["fc"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv1__weight": None}, r"does not fit: 1 missing \(conv1.weight\)$"),
        ({"stem__weight": torch.zeros(1)}, r"does not fit: 1 unexpected \(stem.weight\)$"),
        (
            {"conv1__weight": torch.zeros(64, 1, 7, 7)},
            r"does not fit: 1 of another shape \(conv1.weight is \(64, 1, 7, 7\) for \(64, 3, 7, 7\)\)$",
        ),
    ],
)
def test_a_file_that_does_not_fit_says_where(
    tmp_path: Path, resnet: dict[str, Tensor], changes: dict[str, Tensor | None], message: str
) -> None:
    save_file(changed(resnet, **changes), tmp_path / "wrong.safetensors")
    with pytest.raises(BaseError, match=message):
        load_base("resnet18", str(tmp_path / "wrong.safetensors"))


def test_weights_of_another_network_are_refused_in_one_line(tmp_path: Path, resnet: dict[str, Tensor]) -> None:
    save_file(resnet, tmp_path / "resnet.safetensors")
    with pytest.raises(BaseError, match=r"missing \(.*, \.\.\.\); 122 unexpected") as caught:
        load_base("squeezenet1_1", str(tmp_path / "resnet.safetensors"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


class Planted:
    """What a malicious file would run."""

    def __reduce__(self) -> tuple[object, ...]:
        return print, ("planted code ran",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pt", None, "does not exist"),
        ("text.pt", b"hello", "cannot be read"),
        ("text.safetensors", b"hello", "cannot be read"),
        ("code.pt", Planted(), "cannot be read"),
        ("list.pt", [1, 2], "holds no state dict"),
    ],
)
def test_files_that_hold_no_weights(
    tmp_path: Path, name: str, content: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(BaseError, match=message) as caught:
        load_base("resnet18", str(path))
    assert "\n" not in str(caught.value)
    assert "planted" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "file"), [("resnet18", "resnet18-f37072fd.pth"), ("timm:resnet18", "timm-resnet18.a1_in1k.safetensors")]
)
def test_without_a_network_the_error_says_which_file_goes_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.OpenerDirector.open", refuse)
    with pytest.raises(BaseError, match="Network is unreachable") as caught:
        load_base(name)
    assert file in str(caught.value)
    assert str(tmp_path / "hub" / "checkpoints") in str(caught.value)
    assert "--weights FILE" in str(caught.value)
    assert not list(tmp_path.rglob("*.partial"))


def test_weights_in_the_download_folder_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet: dict[str, Tensor]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(resnet, tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    base = load_base("resnet18")
    assert base.classes is not None
    assert base.classes[:2] == ("tench", "goldfish")
    assert load_base("resnet18", "IMAGENET1K_V1").digest == base.digest
