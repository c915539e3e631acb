"""How fast extraction is, against the usual ways and against the limit of this machine.

    python tests/benchmarks/extract.py [--bases resnet18 vgg16] [--images 1000] [--rounds 3]

Every contender runs in a process of its own, on the same photos with the same weights, and they take turns, so that
whatever else the machine does hits all of them. Rates count everything from the first line after the imports to the
last feature kept; the imports are reported apart. The serial limit is what one gets if the cores never wait:
1 / (forward + decode), each as fast as it is with all cores on nothing else.

Photos are cropped from those under $PIPELINE_REAL_DATA, or painted where that is not set. Weights are random but for
squeezenet1_1: speed does not depend on them. img2vec-pytorch takes part where it is installed.
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
        image.resize((width, height), Image.Resampling.BICUBIC).crop(box).save(folder / f"{number:05}.jpg", quality=90)


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


def run_ours(photos: Path, base: str, weights: str, output: Path) -> None:
    import pipeline

    result = pipeline.extract(photos, output, base=base, weights=weights, force=True)
    assert result.good == result.rows


def run_loader(photos: Path, base: str, weights: str, output: Path) -> None:
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


def run_img2vec(photos: Path, base: str, weights: str, output: Path) -> None:
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


def run_forward(photos: Path, base: str, weights: str, output: Path) -> float:
    """Seconds of the forward pass alone, with all cores, on pixels that are in memory."""
    import numpy as np

    from pipeline.bases import load_base
    from pipeline.commands.extract import recipe_of
    from pipeline.config import ExtractSettings
    from pipeline.devices import CoreThreads
    from pipeline.engines import make_engine

    loaded, settings = load_base(base, weights), ExtractSettings.of({"base": base, "weights": weights})
    engine = make_engine(loaded, recipe_of(settings, loaded), settings, CoreThreads())
    pixels = np.random.default_rng(13).integers(0, 256, (engine.batch_size, *loaded.transform.size, 3), dtype=np.uint8)
    engine(pixels)
    count = len(list(photos.glob("*.jpg")))
    started = time.perf_counter()
    for start in range(0, count, len(pixels)):
        engine(pixels[: count - start])
    return time.perf_counter() - started


def run_decode(photos: Path, base: str, weights: str, output: Path) -> float:
    """Seconds of reading, hashing, decoding and shaping alone, with all cores."""
    from pipeline.bases import load_base
    from pipeline.images import decoding
    from pipeline.images.loading import load
    from pipeline.sources import read_manifest

    transform = load_base(base, weights).transform
    records = read_manifest(photos).records
    started = time.perf_counter()
    for _ in load(records, lambda data, _: transform.preprocess(decoding.decode(data))[None], batch_size=64):
        pass
    return time.perf_counter() - started


RUNS: dict[str, Callable[[Path, str, str, Path], float | None]] = {
    "ours, cold": run_ours,
    "ours": run_ours,
    "DataLoader + eager": run_loader,
    "img2vec-pytorch": run_img2vec,
    "forward alone": run_forward,
    "decode alone": run_decode,
}


def child(name: str, photos: Path, base: str, weights: str) -> None:
    """One run in this process; prints what it took as JSON."""
    started = time.perf_counter()
    if name.startswith("ours") or name.endswith("alone"):
        import pipeline.commands.extract  # noqa: F401
    else:
        import torch  # noqa: F401
        import torchvision  # noqa: F401
    imported = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        alone = RUNS[name](photos, base, weights, Path(folder) / "features")
    seconds = alone or time.perf_counter() - imported
    own, workers = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        json.dumps(
            {
                "imports": imported - started,
                "seconds": seconds,
                "memory": (own.ru_maxrss + workers.ru_maxrss) / 1024,
                "cpu": (own.ru_utime + own.ru_stime + workers.ru_utime + workers.ru_stime)
                / (time.perf_counter() - started),
            }
        )
    )


def in_own_process(name: str, photos: Path, base: str, weights: str, work: Path) -> dict[str, float]:
    cache = work / "cache"
    if name == "ours, cold":
        shutil.rmtree(cache, ignore_errors=True)
    environment = {**os.environ, "TORCH_HOME": str(work), "PIPELINE_CACHE": str(cache), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, __file__, "--child", name, str(photos), base, weights]
    answer = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if answer.returncode:
        sys.exit(f"{name} failed on {base}:\n{answer.stderr}")
    return dict(json.loads(answer.stdout.splitlines()[-1]))


def compare(base: str, photos: Path, count: int, rounds: int, work: Path) -> None:
    """Every contender `rounds` times in turn; a table of rates and of ratios paired within a round."""
    weights = make_weights(work, base)
    names = list(RUNS)
    if base != "resnet18" or importlib.util.find_spec("img2vec_pytorch") is None:
        names.remove("img2vec-pytorch")
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            results[name].append(in_own_process(name, photos, base, weights, work))
            print(f"{base}: {name} {count / results[name][-1]['seconds']:.1f} images/s", file=sys.stderr, flush=True)
    fixed = statistics.median(run["imports"] for run in results["ours"])
    print(f"\n{base}, {count} photos, {rounds} rounds; our imports take {fixed:.1f} s")
    print(f"{'':22}{'images/s':>10}{'ours is':>10}{'CPU':>7}{'MB':>7}")
    for name in names:
        rates = [count / run["seconds"] for run in results[name]]
        ratios = [other["seconds"] / own["seconds"] for own, other in zip(results["ours"], results[name], strict=True)]
        cpu, memory = (statistics.median(run[key] for run in results[name]) for key in ("cpu", "memory"))
        print(f"{name:22}{statistics.median(rates):10.1f}{statistics.median(ratios):9.2f}x{cpu:7.0%}{memory:7.0f}")
    shares = [
        (forward["seconds"] + decode["seconds"]) / own["seconds"]
        for own, forward, decode in zip(results["ours"], results["forward alone"], results["decode alone"], strict=True)
    ]
    each = ", ".join(f"{share:.0%}" for share in shares)
    print(f"share of the serial limit: {statistics.median(shares):.0%} ({each})")


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
            compare(base, photos, options.images, options.rounds, work)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), sys.argv[4], sys.argv[5])
    else:
        main()
