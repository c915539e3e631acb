import re
from pathlib import Path
from typing import Any, get_args

import pytest

from pipeline.config import (
    AUGMENTATIONS,
    LAYERS,
    SOURCES,
    ExtractSettings,
    FinetuneSettings,
    FitSettings,
    Recipe,
    Settings,
)
from pipeline.errors import RecipeMismatchError, SettingsError


def recipe(**changes: object) -> Recipe:
    fields: dict[str, object] = {
        "base": "resnet18",
        "weights": "ab" * 32,
        "layers": ("avgpool",),
        "pool": "none",
        "transform": {"resize": 256},
        "pixels": 1,
        "decode": "exact",
        "views": 0,
        "augment": (),
        "seed": None,
        "precision": "fp32",
        "dtype": "float32",
    }
    return Recipe.model_validate({**fields, **changes})


def test_an_unknown_option_is_answered_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"unknown option 'bse' \(did you mean 'base'\?\)"):
        ExtractSettings.of({"bse": "resnet18"})


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (ExtractSettings, {"views": -1}, "views=-1: give a whole number, at least 0 and at most 64"),
        (ExtractSettings, {"batch_size": "many"}, "batch_size='many': give auto, or a whole number, at least 1 and at"),
        (ExtractSettings, {"batch_size": 0}, "batch_size=0: give auto, or a whole number, at least 1"),
        (ExtractSettings, {"memory": "nan"}, "memory='nan': give auto, or a finite number, above 0"),
        (ExtractSettings, {"memory": "1e300"}, "memory='1e300': give auto, or a finite number"),
        (ExtractSettings, {"workers": "5000"}, "workers='5000': give auto, or a whole number, at least 1 and at most"),
        (ExtractSettings, {"pool": "median"}, "pool='median': give none or avg or max or flatten"),
        (ExtractSettings, {"layer": 3}, "layer=3: give a list of texts"),
        (ExtractSettings, {"weights": "a\0b"}, "weights holds a NUL character"),
        (ExtractSettings, {"seed": 2**40}, "seed=1099511627776: give a whole number"),
        (FinetuneSettings, {"lr": "inf"}, "lr='inf': give a finite number, above 0"),
        (FitSettings, {"jobs": 0}, "jobs=0: give auto, or a whole number, at least 1"),
        (FitSettings, {"jobs": 1000}, "jobs=1000: give auto, or a whole number, at least 1 and at most 512"),
        (FitSettings, {"memory": float("inf")}, "memory=inf: give a finite number, above 0"),
    ],
)
def test_a_bad_value_is_told_in_plain_words(settings: type[Settings], options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as refused:
        settings.of(options)
    assert str(refused.value).startswith(message)


def test_one_text_is_a_list_of_one_and_a_comma_separates() -> None:
    settings = ExtractSettings.of({"layer": "pool5", "views": 1, "augment": "crop, flip", "target": "size, in cm"})
    assert settings.layer == ("pool5",)
    assert settings.augment == ("crop", "flip")
    assert settings.target == ("size, in cm",), "which the name of a column may hold"
    assert FinetuneSettings.of({"train": ["layer3,layer4", "fc"]}).train == ("layer3", "layer4", "fc")


def test_the_help_names_what_the_registries_hold() -> None:
    from pipeline.bases import ZOOS
    from pipeline.bases.torchvision import FAMILIES
    from pipeline.devices import KINDS
    from pipeline.heads import HEADS
    from pipeline.heads.selection import CHOOSERS
    from pipeline.images.augment import CHANGES
    from pipeline.sources import SOURCES as REGISTERED
    from pipeline.training.loop import OPTIMIZERS
    from pipeline.training.recipes import Hyperparameters

    assert set(AUGMENTATIONS) == set(CHANGES)
    assert set(SOURCES) == set(REGISTERED)
    assert set(LAYERS) == {layer for family in FAMILIES.values() for layer in family.aliases}
    assert FitSettings.model_fields["head"].description == f"{', '.join([*HEADS, *CHOOSERS])}."
    assert [HEADS[name].name for name in HEADS] == list(HEADS)
    assert set(get_args(Hyperparameters.model_fields["optimizer"].annotation)) == set(OPTIMIZERS)
    for settings in (ExtractSettings, FinetuneSettings):
        said = {name: str(field.description) for name, field in settings.model_fields.items()}
        assert set(CHANGES) <= set(re.findall(r"\w+", said["augment"]))
        assert all(f"{prefix}NAME" in said["base"] for prefix in ZOOS if prefix)
        assert all(kind in said["device"] for kind in KINDS)
    assert all(layer in str(ExtractSettings.model_fields["layer"].description) for layer in LAYERS)


def test_text_from_the_command_line_becomes_numbers() -> None:
    settings = ExtractSettings.of({"batch_size": "32", "max_bad": "0.5", "layer": ("layer3", "avgpool")})
    assert settings.batch_size == 32
    assert settings.max_bad == 0.5
    assert settings.layer == ("layer3", "avgpool")


@pytest.mark.parametrize("options", [{"views": 2}, {"augment": ("flip",)}])
def test_views_and_augment_go_together(options: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match="needs"):
        ExtractSettings.of(options)


def test_a_recipe_is_identified_by_everything_in_it() -> None:
    assert recipe().fingerprint() == recipe().fingerprint()
    assert recipe().first_difference(recipe()) is None
    assert recipe().fingerprint() != recipe(pool="avg").fingerprint()
    assert recipe().first_difference(recipe(pool="avg")) == ("pool", "none", "avg")


def test_another_recipe_is_refused_with_its_first_difference_and_the_way_out() -> None:
    recipe().refuse_other(recipe(), where="f.h5", way_out="start anew")
    with pytest.raises(
        RecipeMismatchError, match=r"^f.h5 was made with pool='avg', and 'none' is asked for; start anew$"
    ):
        recipe().refuse_other(recipe(pool="avg", dtype="float16"), where="f.h5", way_out="start anew")


def test_features_beside_those_that_are_asked_for_do_no_harm() -> None:
    more = {"layers": ("pool5", "avgpool"), "views": 2, "augment": ("flip",), "seed": 5}
    recipe().refuse_without(recipe(**more), where="f.h5", way_out="start anew")
    with pytest.raises(RecipeMismatchError, match="pixels=2, and 1 is asked for"):
        recipe().refuse_without(recipe(**more, pixels=2), where="f.h5", way_out="start anew")
    with pytest.raises(RecipeMismatchError, match=r"f.h5 has no layer 'avgpool'; extract with --layer avgpool"):
        recipe().refuse_without(recipe(layers=("pool5",)), where="f.h5", way_out="start anew")


def test_a_plain_recipe_is_the_one_without_views() -> None:
    given = {"base": "resnet18", "weights": "ab" * 32, "layers": ["avgpool"], "pool": "none", "pixels": 1}
    assert Recipe.plain(**given, transform={"resize": 256}) == recipe()
    with pytest.raises(SettingsError, match="pool='men': give none or avg"):
        Recipe.plain(**{**given, "pool": "men"}, transform={})


def test_a_recipe_survives_its_own_json() -> None:
    assert Recipe.model_validate_json(recipe().canonical()) == recipe()


def test_a_path_is_as_good_as_its_text() -> None:
    assert ExtractSettings.of({"weights": Path("w.safetensors"), "labels": Path("l.csv")}) == ExtractSettings.of(
        {"weights": "w.safetensors", "labels": "l.csv"}
    )
