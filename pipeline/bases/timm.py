"""Networks of timm, with the data configuration of each: names begin with ``timm:``."""

from __future__ import annotations

from typing import Any

from pipeline.bases.taps import Tap
from pipeline.bases.weights import State, download
from pipeline.bases.zoo import Family, Plan, built, mean_of
from pipeline.errors import BaseError
from pipeline.images.transform import InputTransform


class TimmZoo:
    """Models of timm, each with its own data configuration."""

    def names(self) -> list[str]:
        """List the models of the installed timm; raise `BaseError` where there is no timm."""
        return list(_timm().list_models())

    def weights(self, name: str) -> list[str]:
        """List the tags of a model's published weights, the default first."""
        tags = [full.partition(".")[2] or "DEFAULT" for full in _timm().list_pretrained(f"{name}.*")]
        config = _timm().get_pretrained_cfg(name)
        default = config.tag if config is not None else None
        return sorted(tags, key=lambda tag: tag != default)

    def plan(self, name: str, weights: str | None) -> Plan:
        """Plan a model by the classifier and data configuration that timm records; raise `BaseError` without one."""
        full = f"{name}.{weights}" if weights else name
        network = built(lambda: _timm().create_model(full, pretrained=False), f"timm:{name}")
        config = network.pretrained_cfg
        classifiers = config.get("classifier") or "head"
        classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
        if classifiers[0] not in dict(network.named_modules()):
            raise BaseError(f"timm:{name} has no classifier, so its embedding layer is unknown")
        return Plan(
            family=_family_of(network, classifiers),
            build=lambda classes: _timm().create_model(full, pretrained=False, num_classes=classes),
            classes=config.get("num_classes", 1000),
            transform=_of_timm(_timm().data.resolve_model_data_config(network)),
            categories=None,
        )

    def fetch(self, name: str, weights: str) -> State:
        """Download weights from the Hugging Face hub, or from the address that timm has; raise `BaseError`."""
        full = f"{name}.{weights}" if weights != "DEFAULT" else name
        config = built(lambda: _timm().create_model(full, pretrained=False), f"timm:{name}").pretrained_cfg
        url, file_name = config.get("url"), f"timm-{full}.safetensors"
        if config.get("hf_hub_id"):
            url = f"https://huggingface.co/{config['hf_hub_id']}/resolve/main/model.safetensors"
        if not url:
            raise BaseError(f"timm:{name} has no published weights {weights}; give --weights FILE, or none")
        return download(url, base=f"timm:{name}", weights=weights, file_name=file_name)

    def size(self, name: str) -> tuple[int, int] | None:
        """Return None: the size is known only when the network is built."""
        return None

    def adapt(self, name: str, state: State) -> State:
        """Return the state as it is: files have the names of today."""
        return state


def _timm() -> Any:
    try:
        import timm
        import timm.data
    except ImportError:
        raise BaseError(
            "bases named timm:... need timm; install it with pip install 'cached-feature-pipeline[timm]'"
        ) from None
    return timm


def _family_of(network: Any, classifiers: tuple[str, ...]) -> Family:
    modules = dict(network.named_modules())
    aliases = {"avgpool": mean_of(classifiers[0], "input")}
    pooling = next((name for name in ("global_pool", "head.global_pool") if name in modules), None)
    if pooling is not None:
        aliases["pool5"] = Tap(pooling, "input", channels_last=_is_channels_last(network))
    if hasattr(network, "cls_token") and "norm" in modules:
        aliases["cls"] = Tap("norm", part="class token")
        aliases["tokens"] = Tap("norm", part="tokens", prefix=getattr(network, "num_prefix_tokens", 1))
    last, *others = (f"{name}." for name in classifiers)
    return Family(aliases, last, tuple(others), channels_last="" if _is_channels_last(network) else None)


def _is_channels_last(network: Any) -> bool:
    return str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC")


def _of_timm(config: dict[str, Any]) -> InputTransform:
    height, width = config["input_size"][-2:]
    share = config["crop_pct"]
    fits = {"center": "shortest", "squash": "stretch", "border": "longest"}
    return InputTransform(
        resize=(int(height / share), int(width / share)),
        crop=(height, width),
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        fit=fits[config["crop_mode"]],  # type: ignore[arg-type]
    )
