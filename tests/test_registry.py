import pytest

from pipeline.errors import BaseError, SettingsError
from pipeline.registry import Registry, nearest, refuse_unknown


def test_a_stranger_is_answered_with_the_nearest_name() -> None:
    heads: Registry[int] = Registry("head")
    heads.add("linear", 1)
    heads.add("svm", 2)
    with pytest.raises(SettingsError, match=r"unknown head 'linaer' \(did you mean 'linear'\?\)"):
        heads["linaer"]
    assert nearest("zzz", heads) == ""


def test_many_names_are_counted_rather_than_listed() -> None:
    crowd: Registry[int] = Registry("member")
    for number in range(13):
        crowd.add(f"name{number}", number)
    with pytest.raises(SettingsError, match="and 1 more"):
        crowd["qqq"]


def test_a_name_is_refused_with_the_error_of_its_place_and_only_where_it_is_unknown() -> None:
    refuse_unknown("layer", "avgpool", ["avgpool"], error=BaseError)
    with pytest.raises(
        BaseError, match=r"^resnet18 has no layer 'avgpol' \(did you mean 'avgpool'\?\); known: avgpool$"
    ):
        refuse_unknown("layer", "avgpol", ["avgpool"], where="resnet18", error=BaseError)
    with pytest.raises(SettingsError, match=r"^unknown fit 5; known: shortest$"):  # as a damaged file may have it
        refuse_unknown("fit", 5, ["shortest"])  # type: ignore[arg-type]


def test_one_name_twice_is_a_mistake_in_the_program() -> None:
    heads: Registry[int] = Registry("head")
    heads.register("svm")(1)
    with pytest.raises(ValueError, match="registered twice"):
        heads.add("svm", 2)
    assert "svm" in heads
    assert list(heads) == ["svm"]
    assert len(heads) == 1
