import urllib.error

import pytest
import torch
from torch import nn

from common.errors import UserError
from common.models import ModelInfo, build_model, list_models, model_info

USER_MODULE = """
import torch
from torch import nn

class Plain(nn.Module):
    def __init__(self, num_classes=3, width=4):
        super().__init__()
        self.linear = nn.Linear(width, num_classes)

class Documented(Plain):
    model_info = {"input_shape": (1, 2, 2), "num_classes": 3, "mean": (0.5,), "std": (0.25,)}

class Wrong(Plain):
    model_info = {"shape": (1, 2, 2)}

def number():
    return 3

constant = 4
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "my_networks_for_tests.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "my_networks_for_tests"


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_own_names_come_first_then_torchvision_then_timm():
    assert type(build_model("resnet20")).__module__ == "common.models.cifar_resnet"
    with torch.device("meta"):
        assert type(build_model("efficientnet_b0")).__module__ == "torchvision.models.efficientnet"
        assert type(build_model("timm:efficientnet_b0")).__module__ == "timm.models.efficientnet"
        assert type(build_model("efficientnet_lite0")).__module__ == "timm.models.efficientnet"


def test_number_of_classes_and_further_arguments_reach_the_network():
    with torch.device("meta"):
        assert build_model("resnet20", num_classes=100).linear.out_features == 100
        assert build_model("resnet18", num_classes=5).fc.out_features == 5
        assert build_model("timm:resnet18", num_classes=6).fc.out_features == 6
        assert build_model("mobilenet_v1", width_mult=0.5).fc.in_features == 512


def test_class_path_builds_the_users_network(user_module):
    assert build_model(f"{user_module}.Plain").linear.weight.shape == (3, 4)
    assert build_model(f"{user_module}.Plain", num_classes=8, width=2).linear.weight.shape == (8, 2)
    assert isinstance(build_model("torch.nn.Linear", in_features=2, out_features=3), nn.Linear)


def test_class_path_info_is_what_the_class_declares(user_module):
    assert model_info(f"{user_module}.Plain") == ModelInfo(f"{user_module}.Plain")
    info = model_info(f"{user_module}.Documented")
    assert (info.input_shape, info.num_classes, info.mean, info.std) == ((1, 2, 2), 3, (0.5,), (0.25,))


@pytest.mark.parametrize(
    "attribute, message",
    [
        ("Plane", r"no class 'Plane'; did you mean Plain\?"),
        ("constant", "no class 'constant'"),
        ("number", "gives a int, not a torch.nn.Module"),
    ],
)
def test_class_path_mistakes(user_module, attribute, message):
    with pytest.raises(UserError, match=message) as error:
        build_model(f"{user_module}.{attribute}")
    one_line(error)


def test_class_path_with_wrong_info(user_module):
    with pytest.raises(UserError, match="model_info must be a dict of ModelInfo's fields") as error:
        model_info(f"{user_module}.Wrong")
    one_line(error)


def test_class_path_that_cannot_be_imported():
    with pytest.raises(UserError, match=r"cannot import 'no_such_package\.nets'.*No module named") as error:
        build_model("no_such_package.nets.Net")
    one_line(error)


@pytest.mark.parametrize(
    "name, suggestion",
    [
        ("resnet21", "did you mean .*resnet20"),
        ("mobilenetv2_relu", "did you mean .*mobilenet_v2_relu"),
        ("timm:efficientnet_bo", "did you mean .*timm:efficientnet_b"),
        ("resnet50.a1_in1", r"no weights 'a1_in1' of resnet50; did you mean .*resnet50.a1_in1k"),
        ("%%%", "known: .*digits_net"),
    ],
)
@pytest.mark.parametrize("function", [build_model, model_info])
def test_unknown_names_get_close_matches(function, name, suggestion):
    with pytest.raises(UserError, match=suggestion) as error:
        function(name)
    assert name.split(".")[0] in one_line(error)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("resnet20", {"wings": 2}),
        ("resnet18", {"wings": 2}),
        ("timm:resnet18", {"wings": 2}),
        ("mobilenet_v1", {"activation": "tanh"}),
        ("torch.nn.Linear", {"in_features": 3}),
    ],
)
def test_arguments_that_do_not_fit(name, arguments):
    with pytest.raises(UserError, match=f"cannot build {name}: .*(wings|activation|out_features)") as error:
        build_model(name, **arguments)
    one_line(error)


def test_own_networks_have_no_downloadable_weights():
    with pytest.raises(UserError, match=r"resnet20 has no downloadable weights.*--weights FILE"):
        build_model("resnet20", pretrained=True)


def test_pretrained_torchvision_networks_start_from_imagenet1k_v1(monkeypatch):
    asked = []

    def download(url, **_kwargs):
        asked.append(url)
        raise urllib.error.URLError("no route\nto host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    with pytest.raises(UserError, match=r"cannot get pre-trained weights of resnet50.*--weights FILE") as error:
        build_model("resnet50", pretrained=True)
    one_line(error)
    assert asked == ["https://download.pytorch.org/models/resnet50-0676ba61.pth"]  # V2: resnet50-11ad3fa6.pth


def test_failing_timm_download_is_one_line(monkeypatch):
    def create_model(model_name, pretrained, **_kwargs):
        assert (model_name, pretrained) == ("resnet18", True)
        raise OSError("cannot find the file on the Hub\nand no cache")

    monkeypatch.setattr("timm.create_model", create_model)
    with pytest.raises(UserError, match=r"of timm:resnet18 .*cannot find the file on the Hub.*--weights") as error:
        build_model("timm:resnet18", pretrained=True)
    one_line(error)


def test_pretrained_torchvision_networks_keep_their_classes():
    with pytest.raises(UserError, match="have 1000 classes, not 10; leave the number of classes out"):
        build_model("resnet50", num_classes=10, pretrained=True)


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    "expected",
    [
        ModelInfo("resnet20", (3, 32, 32), 10, *IMAGENET),
        ModelInfo("vgg_small", (3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ModelInfo("digits_net", (1, 8, 8), 10, (0.3054,), (0.3760,)),
        ModelInfo("mobilenet_v1", (3, 224, 224), 1000, *IMAGENET, "bilinear", 256, 224),
        ModelInfo("squeezenext23_2x", (3, 224, 224), 1000, *IMAGENET, "bilinear", 256, 224),
        ModelInfo("inception_v3_no_aux", (3, 299, 299), 1000, (0.5,) * 3, (0.5,) * 3, "bilinear", 342, 299),
        ModelInfo("retinanet_r50_fpn", (3, 800, 1280), 80, *IMAGENET, "bilinear", 800, None),
        ModelInfo("mobilenet_v2", (3, 224, 224), 1000, *IMAGENET, "bilinear", 256, 224),
        ModelInfo("efficientnet_b0", (3, 224, 224), 1000, *IMAGENET, "bicubic", 256, 224),
        ModelInfo("inception_v3", (3, 299, 299), 1000, *IMAGENET, "bilinear", 342, 299),
        ModelInfo("vit_h_14", (3, 518, 518), 1000, *IMAGENET, "bicubic", 518, 518),
        ModelInfo("timm:efficientnet_b0", (3, 224, 224), 1000, *IMAGENET, "bicubic", 256, 224),
        ModelInfo("resnet50.a1_in1k", (3, 224, 224), 1000, *IMAGENET, "bicubic", 235, 224),
    ],
    ids=lambda info: info.name,
)
def test_model_info(expected):
    assert model_info(expected.name) == expected


def test_list_models():
    assert {"resnet20", "resnet32", "resnet44", "resnet56", "resnet18_cifar", "vgg_small", "digits_net"} <= set(
        list_models()
    )
    assert "resnet50" in list_models("torchvision") and "fcn_resnet50" not in list_models("torchvision")
    assert "timm:efficientnet_b0" in list_models("timm")


def test_list_models_of_unknown_source():
    with pytest.raises(UserError, match="source must be own, torchvision or timm, got 'hub'"):
        list_models("hub")
