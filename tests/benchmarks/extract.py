"""How fast extraction is in each precision, against the usual ways and against the limit of this machine.

    python tests/benchmarks/extract.py --precision fp32,bf16,int8 [--bases resnet18 vgg16] [--images 1000] [--rounds 3]

Every contender runs in a process of its own, on the same photos with the same weights, and they take turns, so that
whatever else the machine does hits all of them. Rates count everything from a process's first line to the last feature
kept, imports too; "cold" has an empty cache, "ours" the graph of an earlier run, and in int8 it measures its ranges and
its drift each time. The limit is what one gets if the cores never wait: 1 / (forward + decode), each as fast as it is
with all cores on nothing else; the forward pass is also timed by a bare loop over OpenVINO's own interface, on the same
graph with a fixed batch, as OpenVINO's benchmark does it.

Photos are cropped from those under $PIPELINE_REAL_DATA, or painted where that is not set. Weights are random but for
squeezenet1_1: speed does not depend on them; accuracy does, of a logistic head in 4 x 5 folds, crops of a photo in one.
Drift is the cosine to our own fp32 features, over all photos. img2vec-pytorch takes part where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZE = (500, 400)
LOADER_BATCH = 16


def make_photos(folder: Path, count: int) -> None:
    """`count` JPEG files of about 500 x 400 pixels and 50 kB."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    draw = random.Random(13)
    noise = np.random.default_rng(13)
    root = os.environ.get("PIPELINE_REAL_DATA")
    originals = sorted(Path(root).resolve().glob("data/**/*.jpg")) if root else []
    draw.shuffle(originals)

    def photo(number: int) -> Image.Image:
        if not originals:
            coarse = Image.fromarray(noise.integers(0, 256, (12, 15, 3), dtype=np.uint8)).resize((560, 450))
            grain = noise.normal(0, 12, (450, 560, 1))
            return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))
        return Image.open(originals[number % len(originals)]).convert("RGB")

    for number in range(count):
        image = photo(number)
        scale = max(SIZE[0] / image.width, SIZE[1] / image.height) * draw.uniform(1, 1.15)
        width, height = max(SIZE[0], round(image.width * scale)), max(SIZE[1], round(image.height * scale))
        left, top = draw.randint(0, width - SIZE[0]), draw.randint(0, height - SIZE[1])
        box = (left, top, left + SIZE[0], top + SIZE[1])
        origin, kind = (
            (number % len(originals), originals[number % len(originals)].parent.name) if originals else (0, "")
        )
        file = folder / f"{number:05}-{origin}-{kind}.jpg"
        image.resize((width, height), Image.Resampling.BICUBIC).crop(box).save(file, quality=90)


def make_weights(folder: Path, base: str) -> str:
    """A weights file for our way and a hub folder with the same numbers for those that download."""
    import torch
    from safetensors.torch import save_file
    from torchvision import models

    if base == "squeezenet1_1":
        from pipeline.bases import load_base

        state = load_base(base, "embedded").module.state_dict()
    else:
        torch.manual_seed(13)
        state = models.get_model(base, weights=None).state_dict()
    hub = folder / "hub" / "checkpoints"
    hub.mkdir(parents=True, exist_ok=True)
    torch.save(state, hub / models.get_model_weights(base).DEFAULT.url.rsplit("/", 1)[-1])
    save_file({name: value.contiguous() for name, value in state.items()}, folder / f"{base}.safetensors")
    return str(folder / f"{base}.safetensors")


def run_ours(photos: Path, base: str, weights: str, output: Path, precision: str) -> None:
    import pipeline

    result = pipeline.extract(photos, output, base=base, weights=weights, precision=precision, force=True)
    assert result.good == result.rows


def run_loader(photos: Path, base: str, weights: str, output: Path, precision: str) -> None:
    """The tutorials' way: a Dataset, a DataLoader with two workers, eager PyTorch."""
    import numpy as np
    import torch
    from PIL import Image
    from torchvision import models

    transform = models.get_model_weights(base).DEFAULT.transforms()

    class Photos(torch.utils.data.Dataset[Any]):
        files = sorted(photos.glob("*.jpg"))

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> Any:
            return transform(Image.open(self.files[index]).convert("RGB"))

    network = models.get_model(base, weights="DEFAULT").eval()
    trunk = torch.nn.Sequential(network.features if base[0] in "sv" else _without_head(network))
    features = []
    with torch.no_grad():
        for batch in torch.utils.data.DataLoader(Photos(), batch_size=LOADER_BATCH, num_workers=2):
            maps = trunk(batch)
            features.append(maps.mean((2, 3)) if maps.ndim == 4 else maps)
    np.save(output, torch.cat(features).numpy())


def _without_head(network: Any) -> Any:
    import torch

    network.fc = torch.nn.Identity()
    return network


def run_img2vec(photos: Path, base: str, weights: str, output: Path, precision: str) -> None:
    import numpy as np
    from img2vec_pytorch import Img2Vec
    from PIL import Image

    files = sorted(photos.glob("*.jpg"))
    extractor = Img2Vec(model="resnet18")
    features = []
    for start in range(0, len(files), LOADER_BATCH):
        images = [Image.open(file).convert("RGB") for file in files[start : start + LOADER_BATCH]]
        features.append(extractor.get_vec(images))
    np.save(output, np.concatenate(features))


def run_forward(photos: Path, base: str, weights: str, output: Path, precision: str) -> float:
    """Seconds of the forward pass alone, with all cores, on pixels that are in memory."""
    from pipeline.config import EngineSettings
    from pipeline.devices import CoreThreads
    from pipeline.engines import make_engine
    from pipeline.engines.workers import base_loader

    recipe = _recipe(output)
    engine = make_engine(base_loader(recipe, weights, seed=13), recipe, EngineSettings(), CoreThreads())
    pixels = _noise(engine.batch_size)
    engine(pixels)
    count = len(list(photos.glob("*.jpg")))
    started = time.perf_counter()
    for start in range(0, count, len(pixels)):
        engine(pixels[: count - start])
    return time.perf_counter() - started


def run_openvino(photos: Path, base: str, weights: str, output: Path, precision: str) -> float:
    """Seconds of the forward pass in OpenVINO without us: a request a core, always full, a fixed batch."""
    import openvino

    from pipeline.devices import cores
    from pipeline.engines import graph_of
    from pipeline.engines.workers import base_loader

    recipe = _recipe(output)
    core = openvino.Core()
    model = core.read_model(graph_of(base_loader(recipe, weights, seed=13), recipe))
    pixels = _noise(8)
    model.reshape(pixels.shape)
    hint = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}[precision]
    settings = {"NUM_STREAMS": cores(), "INFERENCE_NUM_THREADS": cores(), "INFERENCE_PRECISION_HINT": hint}
    queue = openvino.AsyncInferQueue(core.compile_model(model, "CPU", settings), cores())
    rounds = len(list(photos.glob("*.jpg"))) // len(pixels)
    for count in (cores(), rounds):
        started = time.perf_counter()
        for _ in range(count):
            queue.start_async([pixels])
        queue.wait_all()
    return time.perf_counter() - started


def _recipe(store: Path) -> Any:
    from pipeline import FeatureStore

    with FeatureStore.open(store) as opened:
        return opened.recipe


def _noise(count: int) -> Any:
    import numpy as np

    return np.random.default_rng(13).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)


def run_decode(photos: Path, base: str, weights: str, output: Path, precision: str) -> float:
    """Seconds of reading, hashing, decoding and shaping alone, with all cores."""
    from pipeline.images.loading import load
    from pipeline.images.preprocess import make_preprocess
    from pipeline.images.transform import InputTransform
    from pipeline.sources import read_manifest

    recipe = _recipe(output)
    preprocess = make_preprocess(recipe, InputTransform.from_description(recipe.transform))
    records = read_manifest(photos).records
    started = time.perf_counter()
    for _ in load(records, preprocess, batch_size=64):
        pass
    return time.perf_counter() - started


Run = Callable[[Path, str, str, Path, str], float | None]
#: What runs in each precision, and what runs once.
EACH: dict[str, Run] = {
    "ours, cold": run_ours,
    "ours": run_ours,
    "forward alone": run_forward,
    "OpenVINO alone": run_openvino,
}
ONCE: dict[str, Run] = {
    "decode alone": run_decode,
    "DataLoader + eager": run_loader,
    "img2vec-pytorch": run_img2vec,
}


def child(name: str, photos: Path, base: str, weights: str, output: Path, precision: str) -> None:
    """One run in this process; prints what it took as JSON."""
    started = time.perf_counter()
    alone = (EACH | ONCE)[name](photos, base, weights, output, precision)
    whole = time.perf_counter() - started
    own, workers = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own.ru_utime + own.ru_stime + workers.ru_utime + workers.ru_stime
    memory = (_peak() + workers.ru_maxrss) / 1024
    print(json.dumps({"seconds": alone or whole, "memory": memory, "cpu": cpu}))


def _peak() -> int:
    """KB at the peak of this process: the system's other figure begins at that of the parent."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def in_own_process(contender: str, photos: Path, base: str, weights: str, work: Path) -> dict[str, float]:
    name, _, precision = contender.partition(" | ")
    cache, output = work / "cache", work / f"{base}-{precision or 'fp32'}.h5"
    if name == "ours, cold":
        shutil.rmtree(cache, ignore_errors=True)
    if name in ONCE and name != "decode alone":
        output = work / "others.npy"
    environment = {**os.environ, "TORCH_HOME": str(work), "PIPELINE_CACHE": str(cache), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, __file__, "--child", name, *map(str, (photos, base, weights, output)), precision]
    answer = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if answer.returncode:
        sys.exit(f"{name} failed on {base}:\n{answer.stderr}")
    return dict(json.loads(answer.stdout.splitlines()[-1]))


def compare(base: str, photos: Path, precisions: list[str], rounds: int, work: Path) -> None:
    """Every contender `rounds` times in turn; a table of rates and of ratios paired within a round."""
    weights, count = make_weights(work, base), len(list(photos.glob("*.jpg")))
    others = [name for name in ONCE if name != "img2vec-pytorch"]
    if base == "resnet18" and importlib.util.find_spec("img2vec_pytorch") is not None:
        others.append("img2vec-pytorch")
    bare = ["OpenVINO alone"] if importlib.util.find_spec("openvino") is not None else []
    each = [name for name in EACH if name != "OpenVINO alone"] + bare
    contenders = [f"{name} | {precision}" for precision in precisions for name in each] + others
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name in contenders:
            found[name].append(in_own_process(name, photos, base, weights, work))
            print(f"{base}: {name} {count / found[name][-1]['seconds']:.1f} images/s", file=sys.stderr, flush=True)

    def ratio(of: str, to: str) -> float:
        return statistics.median(b["seconds"] / a["seconds"] for a, b in zip(found[of], found[to], strict=True))

    plain, loader = f"ours | {precisions[0]}", "DataLoader + eager"
    print(f"\n{base}, {count} photos, {rounds} rounds")
    print(f"{'':24}{'images/s':>10}{'to ' + precisions[0]:>10}{'to loader':>11}{'cpu s':>8}{'MB':>7}")
    for name in contenders:
        rate, cpu, memory = (
            statistics.median(map(take, found[name]))
            for take in (lambda run: count / run["seconds"], lambda run: run["cpu"], lambda run: run["memory"])
        )
        print(f"{name:24}{rate:10.1f}{ratio(name, plain):9.2f}x{ratio(name, loader):10.2f}x{cpu:8.1f}{memory:7.0f}")
    for precision in precisions:
        shares = [
            (forward["seconds"] + decode["seconds"]) / own["seconds"]
            for own, forward, decode in zip(
                *(found[name] for name in (f"ours | {precision}", f"forward alone | {precision}", "decode alone")),
                strict=True,
            )
        ]
        print(f"{precision}: {statistics.median(shares):.0%} of the limit; {_answers(base, precision, work)}")


def _answers(base: str, precision: str, work: Path) -> str:
    """How near features are to those of fp32, and how well a head does on them."""
    import numpy as np

    def features(which: str) -> tuple[Any, list[str]]:
        from pipeline import FeatureStore

        with FeatureStore.open(work / f"{base}-{which}.h5") as store:
            (name,) = store.layers
            return np.asarray(store.features(name), float).reshape(len(store.ids), -1), list(store.ids)

    (given, ids), told = features(precision), ""
    if precision != "fp32" and (work / f"{base}-fp32.h5").exists():
        plain = features("fp32")[0]
        cosines = (given * plain).sum(1) / np.linalg.norm(given, axis=1) / np.linalg.norm(plain, axis=1)
        told = f"cosine to fp32 {cosines.mean():.4f} (least {cosines.min():.4f}); "
    _, origins, kinds = zip(*(Path(id).stem.split("-") for id in ids), strict=True)
    if len(set(kinds)) < 2:
        return told.rstrip("; ")
    scores = _accuracies(given, np.array(kinds), np.array(origins, int))
    spread = f"in {len(scores)} folds, deviation {np.std(scores):.4f}"
    return f"{told}accuracy of a logistic head {np.mean(scores):.4f} ({spread})"


def _accuracies(features: Any, kinds: Any, origins: Any) -> list[float]:
    """Accuracies in 4 x 5 folds, the same for all precisions."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scores = []
    for repeat in range(4):
        folds = np.random.default_rng(repeat).integers(0, 5, origins.max() + 1)[origins]
        for fold in range(5):
            head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
            head.fit(features[folds != fold], kinds[folds != fold])
            scores.append(head.score(features[folds == fold], kinds[folds == fold]))
    return scores


def describe_machine() -> str:
    import onnxruntime
    import PIL
    import torch

    from pipeline.devices import cores

    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return (
        f"{names[0] if names else platform.processor()}, {cores()} cores; Python {platform.python_version()}, "
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, Pillow {PIL.__version__}"
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", default=["squeezenet1_1", "resnet18", "resnet50", "vgg16"])
    parser.add_argument("--precision", default="fp32", help="of fp32, bf16 and int8, with commas between")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="folder to keep photos and weights in for the next time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        photos = work / f"photos-{options.images}"
        if not photos.is_dir():
            make_photos(photos, options.images)
        print(describe_machine())
        for base in options.bases:
            compare(base, photos, options.precision.split(","), options.rounds, work)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        name, photos, base, weights, output, precision = sys.argv[2:]
        child(name, Path(photos), base, weights, Path(output), precision)
    else:
        main()
