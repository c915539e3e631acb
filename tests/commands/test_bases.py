"""The list of bases, and its filters."""

from __future__ import annotations

import numpy as np
from torchvision import models

from pipeline.commands.bases import list_bases


def test_the_list_holds_every_classification_model() -> None:
    found = list_bases()
    assert [info.name for info in found] == models.list_models(module=models)
    by_name = {info.name: info for info in found}
    assert by_name["squeezenet1_1"].weights == ("IMAGENET1K_V1", "embedded")
    assert by_name["resnet50"].weights == ("IMAGENET1K_V2", "IMAGENET1K_V1")
    assert by_name["vgg16"].layers == ("avgpool", "pool5", "fc6", "fc7")
    assert (by_name["resnet18"].dimensions, by_name["resnet18"].parameters) == (512, 11_689_512)
    assert by_name["resnet18"].to_json()["dimensions"] == 512


def test_filters_of_the_list() -> None:
    assert [info.name for info in list_bases("vit_b")] == ["vit_b_16", "vit_b_32"]
    assert [info.name for info in list_bases("resnet?8")] == ["resnet18"]
    assert list_bases("nothing") == []
    (info,) = list_bases("timm:tf_efficientnet_lite0")
    assert (info.name, info.dimensions) == ("timm:tf_efficientnet_lite0", 1280)
    assert np.isclose(info.parameters, 4_652_008)
