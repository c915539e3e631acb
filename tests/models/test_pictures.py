"""Pictures of a model's data and training."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.models import pictures
from pipeline.plots import NoImages
from pipeline.sources import Target
from pipeline.store import FeatureStore

LENGTH = Target("length", np.array([1.0, 2.0, np.nan, 4.0]))
KIND = Target("kind", np.array([0, 1, 1, -1]), ("ant", "bee"))


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_numbers_are_drawn_by_class_where_there_are_classes() -> None:
    found = legend_of(pictures.histogram(LENGTH, {"length": LENGTH, "kind": KIND}))
    assert found == ["ant (1)", "bee (1)", "of no known class (1)"]
    assert legend_of(pictures.histogram(LENGTH, {"length": LENGTH})) == []


def test_labels_are_written_as_they_are_known() -> None:
    assert [pictures.written(KIND, row) for row in (0, 3)] == ["ant", ""]
    assert [pictures.written(LENGTH, row) for row in (3, 2)] == ["4", ""]
    assert pictures.written(None, 0) == ""


def test_a_batch_shows_the_plain_view_and_the_random_ones(trained) -> None:
    with FeatureStore.open(trained.store) as store:
        recipe = store.recipe.model_copy(update={"views": 2, "augment": ("flip",), "seed": 1})
        album = pictures.album_of(store)
        figure = pictures.batch(album, store.ids, ["ants"] * len(store), recipe=recipe)
        assert [text.get_text() for text in figure.texts[:4]] == ["ants", "view 1", "view 2", "ants"]
        gone = pictures.album_of(store, source=str(trained.photos / "train"))
        with pytest.raises(NoImages):
            pictures.batch(gone, store.ids, ["ants"] * len(store), recipe=store.recipe)


def test_epochs_say_which_rows_judged_them_and_rankings_what_auto_is() -> None:
    epochs = [{"epoch": 1, "train_loss": 1.0, "val_loss": 0.5, "val_accuracy": 0.75}]
    ranked = [{"head": "svm", "score": 0.5, "interval": [0.4, 0.6], "chosen": True}]
    of_head = {"search": [], "epochs": epochs, "best_epoch": 1, "ranking": ranked, "compared_by": "nested"}
    drawings = pictures.of_training(of_head, task="classes", nested="nested")
    titles = {name: draw().get_suptitle() for name, draw in drawings.items()}
    assert titles["learning"] == "epoch 1 is kept: out of fold accuracy 0.75"
    assert titles["ranking"].startswith("auto: ")
    (learning,) = pictures.of_training({"epochs": epochs, "best_epoch": 1}, task="classes", nested="").values()
    assert learning().get_suptitle() == "epoch 1 is kept: val accuracy 0.75"
