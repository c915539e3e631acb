import pytest

from pipeline.config import ExtractSettings, Recipe
from pipeline.errors import SettingsError


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


def test_a_bad_value_names_the_option_and_the_value() -> None:
    with pytest.raises(SettingsError, match=r"views=-1: .*greater than or equal to 0"):
        ExtractSettings.of({"views": -1})
    with pytest.raises(SettingsError, match="batch_size"):
        ExtractSettings.of({"batch_size": "many"})


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


def test_a_recipe_survives_its_own_json() -> None:
    assert Recipe.model_validate_json(recipe().canonical()) == recipe()
