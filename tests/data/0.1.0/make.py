"""How this folder was made: `python tests/data/0.1.0/make.py` with version 0.1.0 of the package on the path.

Twelve pictures of noise in two colours, features of 16 numbers, a model of each kind of head, and what each answers.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from pictures import write_photos

from pipeline import extract, fit_head, predict

HEADS = ("linear", "ridge", "svm", "knn", "mlp", "blend")


def main(folder: Path) -> None:
    """Write the feature files, a folder a model without what nothing is answered from, and expected.json."""
    with tempfile.TemporaryDirectory() as place:
        photos = Path(place) / "photos"
        write_photos(photos / "ants", 6, first_seed=0, colour=(200, 60, 40))
        write_photos(photos / "bees", 6, first_seed=100, colour=(40, 60, 200))
        images = sorted(photos.rglob("*.jpg"))
        table = Path(place) / "lengths.csv"
        lines = [f"{image.relative_to(place)},{place_in + 7.5:.1f}" for place_in, image in enumerate(images)]
        table.write_text("\n".join(["image,length", *lines]) + "\n")
        base = {"base": "squeezenet1_1", "weights": "embedded", "layer": ("features.3.squeeze",), "pool": "avg"}
        extract(photos, folder / "classes.h5", **base)
        extract(table, folder / "numbers.h5", target=("length:number",), **base)
        expected = {}
        for store in ("classes", "numbers"):
            for head in HEADS if store == "classes" else ("ridge", "svm", "knn", "mlp", "binned"):
                name = f"{store}-{head}"
                fit_head(folder / f"{store}.h5", folder / name, head=head)
                expected[name] = [
                    entry | {"id": Path(entry["id"]).relative_to(place).as_posix()}
                    for entry in predict(folder / name, images).predictions
                ]
                shutil.rmtree(folder / name / "plots")
                (folder / name / "predictions.csv").unlink()
                (folder / name / "metrics.json").unlink()
        (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(__file__).parent)
