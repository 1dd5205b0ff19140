"""Networks by name: our own, torchvision's, timm's, or a class of the user's."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torchvision
from torch import nn

from common.errors import UserError
from common.models.alexnet_single import alexnet_single
from common.models.cifar_resnet import resnet18_cifar, resnet20, resnet32, resnet44, resnet56
from common.models.digits_net import digits_net
from common.models.inception_v3 import inception_v3_no_aux
from common.models.mobilenet_v1 import mobilenet_v1
from common.models.mobilenet_v2_relu import mobilenet_v2_relu
from common.models.mobilenet_v2_tflite import mobilenet_v2_tflite
from common.models.resnet50 import preact_resnet50, resnet50_no_max_pool
from common.models.retinanet import retinanet_r50_fpn
from common.models.squeezenext import squeezenext23_2x
from common.models.vgg_small import vgg_small

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelInfo:
    """What a network was made for. None: it does not say, the data set decides.

    Attributes:
        name: as given to build_model.
        input_shape: (C, H, W) of one image.
        num_classes: default number of outputs.
        mean, std: per channel, for pixels in [0, 1].
        interpolation: "bilinear", "bicubic", ...: how evaluation images are resized.
        resize: length of the shorter side after resizing, in pixels; None: images are not resized.
        crop: side of the square center crop after it, in pixels; None: not cropped.
    """

    name: str
    input_shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    resize: int | None = None
    crop: int | None = None


def _cifar(name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> ModelInfo:
    return ModelInfo(name, (3, 32, 32), 10, mean, std)


def _imagenet(name: str) -> ModelInfo:
    return ModelInfo(name, (3, 224, 224), 1000, IMAGENET_MEAN, IMAGENET_STD, "bilinear", resize=256, crop=224)


# akamaster's published CIFAR ResNets were trained with the ImageNet constants; the others take CIFAR-10's own
_CIFAR10_MEAN, _CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_OWN: dict[str, tuple[Callable[..., nn.Module], ModelInfo]] = {
    "resnet20": (resnet20, _cifar("resnet20", IMAGENET_MEAN, IMAGENET_STD)),
    "resnet32": (resnet32, _cifar("resnet32", IMAGENET_MEAN, IMAGENET_STD)),
    "resnet44": (resnet44, _cifar("resnet44", IMAGENET_MEAN, IMAGENET_STD)),
    "resnet56": (resnet56, _cifar("resnet56", IMAGENET_MEAN, IMAGENET_STD)),
    "resnet18_cifar": (resnet18_cifar, _cifar("resnet18_cifar", _CIFAR10_MEAN, _CIFAR10_STD)),
    "vgg_small": (vgg_small, _cifar("vgg_small", _CIFAR10_MEAN, _CIFAR10_STD)),
    "alexnet_single": (alexnet_single, _imagenet("alexnet_single")),
    "mobilenet_v1": (mobilenet_v1, _imagenet("mobilenet_v1")),
    "mobilenet_v2_relu": (mobilenet_v2_relu, _imagenet("mobilenet_v2_relu")),
    "mobilenet_v2_tflite": (
        mobilenet_v2_tflite,
        ModelInfo("mobilenet_v2_tflite", (3, 224, 224), 1000, (0.5,) * 3, (0.5,) * 3, "bilinear", resize=256, crop=224),
    ),
    "preact_resnet50": (preact_resnet50, _imagenet("preact_resnet50")),
    "resnet50_no_max_pool": (resnet50_no_max_pool, _imagenet("resnet50_no_max_pool")),
    "squeezenext23_2x": (squeezenext23_2x, _imagenet("squeezenext23_2x")),
    "inception_v3_no_aux": (
        inception_v3_no_aux,
        ModelInfo("inception_v3_no_aux", (3, 299, 299), 1000, (0.5,) * 3, (0.5,) * 3, "bilinear", resize=342, crop=299),
    ),
    # COCO: shorter side 800; 1280 is the usual longer side where its MACs are given
    "retinanet_r50_fpn": (
        retinanet_r50_fpn,
        ModelInfo("retinanet_r50_fpn", (3, 800, 1280), 80, IMAGENET_MEAN, IMAGENET_STD, "bilinear", resize=800),
    ),
    # of the training images that the digits data module takes from scikit-learn's, values 0..16 divided by 16
    "digits_net": (digits_net, ModelInfo("digits_net", (1, 8, 8), 10, mean=(0.3054,), std=(0.3760,))),
}


def build_model(name: str, num_classes: int | None = None, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A network by name, looked up in this order: ours, torchvision's, timm's, a class path.

    Args:
        name: e.g. "resnet20", "resnet50", "efficientnet_b0" (torchvision's, which comes before timm's),
            "timm:efficientnet_b0" (timm's), "package.module.Class" (a class or function of yours that gives a module).
        num_classes: outputs; None takes the network's default (a class path gets no such argument then).
        pretrained: take torchvision's IMAGENET1K_V1 or timm's default weights, downloaded on first use. V1 because
            published quantization results start from those.
        kwargs: further arguments of the network.
    Raises:
        UserError: unknown name (with the closest known ones), arguments that the network does not take, no weights.
    """
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    source, key = _resolve(name)
    if pretrained and source in ("own", "class"):
        raise UserError(f"{name} has no downloadable weights; give a weights file instead (--weights FILE)")
    if source == "class":
        return _build_class(key, kwargs)
    if pretrained and source == "torchvision":
        trained_classes = len(_torchvision_weights(key).meta["categories"])
        if num_classes not in (None, trained_classes):
            raise UserError(
                f"the pre-trained weights of {name} have {trained_classes} classes, not {num_classes}; leave the "
                "number of classes out, or take a timm: name, whose classifier is then new"
            )
    if source == "own":
        build = _OWN[key][0]
    elif source == "torchvision":
        build = torchvision.models.get_model_builder(key)
        kwargs["weights"] = _torchvision_weights(key) if pretrained else None
        if not pretrained and key in ("googlenet", "inception_v3"):
            kwargs.setdefault("init_weights", True)  # the default, said aloud: left out, it draws a warning
    else:
        import timm

        kwargs = {"model_name": key, "pretrained": pretrained, **kwargs}
        build = timm.create_model
    _check_arguments(build, name, kwargs)
    try:
        return build(**kwargs)
    except Exception as error:  # urllib, httpx, hub and hash errors when downloading; wrong values otherwise
        if pretrained:
            raise UserError(
                f"cannot get pre-trained weights of {name} ({_first_line(error)}); without a network, give a weights "
                "file instead (--weights FILE)"
            ) from error
        if isinstance(error, ValueError | TypeError | RuntimeError):
            raise UserError(f"cannot build {name}: {str(error).splitlines()[0]}") from error
        raise


def model_info(name: str) -> ModelInfo:
    """Input size and preprocessing of a network, without building it or downloading anything.

    torchvision: of the IMAGENET1K_V1 weights; timm: of the default (or named) pre-trained weights. A class of the
    user's may have a class attribute `model_info`, a dict of ModelInfo's fields; without it, all is left to the data.

    Raises:
        UserError: unknown name.
    """
    source, key = _resolve(name)
    if source == "own":
        return _OWN[key][1]
    if source == "torchvision":
        weights = _torchvision_weights(key)
        transforms = weights.transforms()
        crop, resize = transforms.crop_size[0], transforms.resize_size[0]
        return ModelInfo(
            name=name,
            input_shape=(len(transforms.mean), crop, crop),
            num_classes=len(weights.meta["categories"]),
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
            interpolation=transforms.interpolation.value,
            resize=resize,
            crop=crop,
        )
    if source == "timm":
        import timm

        cfg = timm.get_pretrained_cfg(key).to_dict()
        config = timm.data.resolve_data_config({}, pretrained_cfg=cfg)
        height = config["input_size"][1]
        return ModelInfo(
            name=name,
            input_shape=tuple(config["input_size"]),
            num_classes=cfg["num_classes"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=config["interpolation"],
            resize=math.floor(height / config["crop_pct"]),
            crop=height,
        )
    declared = getattr(_import_class(key), "model_info", {})
    try:
        return ModelInfo(**{"name": name, **declared})
    except TypeError as error:
        raise UserError(f"{name}.model_info must be a dict of ModelInfo's fields: {_first_line(error)}") from error


def list_models(source: str = "own") -> tuple[str, ...]:
    """Names that build_model takes, of one source: "own", "torchvision" (classifiers) or "timm" (with its prefix)."""
    if source == "own":
        return tuple(sorted(_OWN))
    if source == "torchvision":
        return tuple(sorted(torchvision.models.list_models(module=torchvision.models)))
    if source == "timm":
        import timm

        return tuple(f"timm:{name}" for name in sorted(timm.list_models()))
    raise UserError(f"source must be own, torchvision or timm, got {source!r}")


def _resolve(name: str) -> tuple[str, str]:
    """(source, name within it). timm is imported only when the faster sources do not know the name."""
    if name in _OWN:
        return "own", name
    if name in list_models("torchvision"):
        return "torchvision", name
    import timm

    timm_name = name.removeprefix("timm:")
    # "resnet50.a1_in1k" names one of several sets of weights; a wrong tag would fail late or be taken for a class path
    architecture, _, tag = timm_name.partition(".")
    if timm.is_model(architecture):
        known = timm.list_pretrained(architecture)
        if not tag or timm_name in known:
            return "timm", timm_name
        raise UserError(f"{name}: timm has no weights {tag!r} of {architecture}; {_suggest(timm_name, known)}")
    if "." in name and not name.startswith("timm:"):
        return "class", name
    own, from_torchvision, from_timm = (list_models(source) for source in ("own", "torchvision", "timm"))
    if name.startswith("timm:"):
        raise UserError(f"unknown model {name!r}; {_suggest(name, from_timm)}")
    candidates = dict.fromkeys([*own, *from_torchvision, *(known.removeprefix("timm:") for known in from_timm)])
    raise UserError(f"unknown model {name!r}; {_suggest(name, candidates)}")


def _suggest(name: str, candidates: Any) -> str:
    close = difflib.get_close_matches(name, list(candidates), n=4)
    if close:
        return f"did you mean {', '.join(close)}?"
    return f"known: {', '.join(_OWN)}, torchvision and timm names, package.module.Class"


def _torchvision_weights(name: str) -> Any:
    """IMAGENET1K_V1, or the default of the two networks that have none. Metadata only, no download."""
    available = torchvision.models.get_model_weights(name)
    return getattr(available, "IMAGENET1K_V1", available.DEFAULT)


def _import_class(path: str) -> Callable[..., Any]:
    module_name, _, class_name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may fail in any way while it is imported
        raise UserError(
            f"cannot import {module_name!r} for model {path!r} ({_first_line(error)}); give a model name or "
            "package.module.Class, importable from the current folder"
        ) from error
    found = getattr(module, class_name, None)
    if not callable(found):
        close = difflib.get_close_matches(class_name, [known for known in vars(module) if known[0] != "_"], n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise UserError(f"module {module_name!r} has no class {class_name!r}{hint}")
    return found


def _build_class(path: str, kwargs: dict[str, Any]) -> nn.Module:
    builder = _import_class(path)
    _check_arguments(builder, path, kwargs)
    model = builder(**kwargs)  # errors inside the user's own code keep their traceback
    if not isinstance(model, nn.Module):
        raise UserError(f"{path} gives a {type(model).__name__}, not a torch.nn.Module")
    return model


def _check_arguments(builder: Callable[..., Any], name: str, kwargs: dict[str, Any]) -> None:
    try:
        inspect.signature(builder).bind(**kwargs)
    except TypeError as error:
        raise UserError(f"cannot build {name}: {error}") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
