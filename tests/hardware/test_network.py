import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.bit_policy import BitPolicy
from common.errors import UserError
from hardware import CostModel, Network, cost_model, network
from hardware.network import describe

IMAGE = (3, 224, 224)


class Functional(nn.Module):
    """A convolution, then a function of its output."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.weight, self.function = nn.Conv2d(3, 4, 3), nn.Parameter(torch.zeros(4, 4, 1, 1)), function

    def forward(self, x):
        return self.function(self.conv(x), self.weight)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.attention = nn.Linear(4, 8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        x = self.embed(x)
        return self.attention(x, x, x)[0]


def sources(net: Network) -> set[str]:
    """Tensors that layers read, before pooling and concatenation, without the image."""
    return {read.names[-1] for layer in net.layers for read in layer.reads if not read.is_image}


def policy_of(net: Network, weights=4, activations=4, **widths) -> BitPolicy:
    """Every weight and every tensor that a layer reads, at one width; tensors of `widths` at their own."""
    sites = {f"{layer.name}.weight": weights for layer in net.layers}
    sites |= {name: activations for name in sources(net)}
    return BitPolicy(net.model, net.input_shape, sites | {f"{name}.output": bits for name, bits in widths.items()})


def costs(target: str | CostModel, net: Network, policy: BitPolicy) -> dict[str, float]:
    cost = (cost_model(target) if isinstance(target, str) else target).policy_cost(net.layers, policy)
    return dict(zip(cost.names, cost.costs, strict=True))


# weights + biases + 2 x batch-norm channels is the number of parameters that torchvision and timm publish
@pytest.mark.parametrize(
    "model, input_shape, layers, macs, weights, biases, batch_norm, parameters",
    [
        ("mobilenet_v1", IMAGE, 28, 568_740_352, 4_209_088, 1000, 10_944, 4_231_976),
        ("mobilenet_v2", IMAGE, 53, 300_774_272, 3_469_760, 1000, 17_056, 3_504_872),
        ("timm:mobilenetv2_100", IMAGE, 53, 300_774_272, 3_469_760, 1000, 17_056, 3_504_872),
        ("resnet18", IMAGE, 21, 1_814_073_344, 11_678_912, 1000, 4800, 11_689_512),
        ("resnet50", IMAGE, 54, 4_089_184_256, 25_502_912, 1000, 26_560, 25_557_032),
        ("timm:resnet50", IMAGE, 54, 4_089_184_256, 25_502_912, 1000, 26_560, 25_557_032),
        ("efficientnet_b0", IMAGE, 82, 385_814_752, 5_236_192, 10_340, 21_008, 5_288_548),
        ("timm:efficientnet_b0", IMAGE, 82, 385_814_752, 5_236_192, 10_340, 21_008, 5_288_548),
        ("squeezenet1_0", IMAGE, 26, 818_924_576, 1_244_448, 3976, 0, 1_248_424),
        ("inception_v3_no_aux", (3, 299, 299), 95, 5_713_216_096, 23_799_136, 1000, 17_216, 23_834_568),
    ],
)
def test_counts(model, input_shape, layers, macs, weights, biases, batch_norm, parameters):
    found = network(model)
    assert (found.model, found.input_shape, len(found.layers)) == (model, input_shape, layers)
    assert (found.num_macs, found.num_weights, found.num_biases) == (macs, weights, biases)
    assert found.batch_norm_channels == batch_norm
    assert weights + biases + 2 * batch_norm == parameters


def test_a_smaller_input_has_fewer_macs_and_the_same_weights():
    small = network("mobilenet_v2", (3, 64, 64))
    assert small.num_weights == 3_469_760
    assert small.num_macs == (300_774_272 - 1_280_000) * 4 // 49 + 1_280_000  # all maps are 2/7 as high and as wide


def test_a_class_path_is_a_network():
    found = network("torchvision.models.MobileNetV2", (3, 224, 224), num_classes=10)
    assert found.model == "torchvision.models.MobileNetV2"
    assert found.num_macs == 300_774_272 - 990 * 1280
    assert found.layer("classifier.1").out_channels == 10


def test_the_description_is_made_once_and_draws_no_random_numbers():
    torch.manual_seed(3)
    first = network("digits_net")
    drawn = torch.rand(4)
    torch.manual_seed(3)
    assert network("digits_net") is first
    assert torch.equal(torch.rand(4), drawn)


def test_only_batch_norms_that_run_are_counted():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.used, self.unused = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(64)

        def forward(self, x):
            return self.used(self.used(self.conv(x)))

    assert describe("unused", Unused(), (3, 8, 8)).batch_norm_channels == 4


@pytest.mark.parametrize(
    "module, input_shape, named",
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 3, 3)), (3, 8, 8), "'1' (ConvTranspose2d)"),
        (nn.Sequential(nn.Linear(4, 4), nn.Conv1d(5, 2, 1)), (5, 4), "'1' (Conv1d)"),
        (nn.Sequential(nn.Linear(4, 4), nn.GRUCell(4, 4)), (4,), "'1' (GRUCell)"),
        (Attention(), (5, 4), "'attention' (MultiheadAttention)"),
        (Functional(F.conv2d), (3, 8, 8), "'conv2d' (conv)"),
        (Functional(lambda x, w: x @ x.transpose(2, 3)), (3, 8, 8), "'matmul' (matmul)"),
        (
            Functional(lambda x, w: torch.einsum("nchw,dchw->nd", x, w.expand(4, 4, 6, 6))),
            (3, 8, 8),
            "'einsum' (einsum)",
        ),
        (
            Functional(lambda x, w: F.scaled_dot_product_attention(x, x, x)),
            (3, 8, 8),
            "'scaled_dot_product_attention' (scaled_dot_product_attention)",
        ),
        (Functional(lambda x, w: F.conv_transpose2d(x, w)), (3, 8, 8), "'conv_transpose2d' (conv)"),
    ],
)
def test_operators_without_a_cost_model_are_refused_by_name(module, input_shape, named):
    with pytest.raises(UserError) as error:
        describe("net", module, input_shape)
    assert str(error.value) == f"net: no cost model for {named}; only Conv2d and Linear layers can be costed"


def test_a_product_of_parameters_alone_is_no_layer():
    net = describe("net", Functional(lambda x, w: x * torch.einsum("abcd,abcd->", w, w)), (3, 8, 8))
    assert [layer.name for layer in net.layers] == ["conv"]


@pytest.mark.parametrize(
    "model, arguments, message",
    [
        ("mobilenet_v9", {}, "unknown model 'mobilenet_v9'; did you mean mobilenet_v"),
        ("torch.nn.Identity", {}, "torch.nn.Identity states no input size; give one .C, H, W."),
        ("torch.nn.Identity", {"input_shape": (3, 8, 8)}, "torch.nn.Identity has no Conv2d or Linear layer"),
        ("mobilenet_v2", {"input_shape": (1, 32, 32)}, "expected input.2, 1, 32, 32. to have 3 channels"),
        ("mobilenet_v2", {"input_shape": (3, 0, 32)}, "input sizes must be at least 1, got 3x0x32"),
        ("digits_net", {"num_classes": 0}, "digits_net: layer 'linear' has no weights"),
        ("timm:vit_tiny_patch16_224", {}, "no cost model for 'scaled_dot_product_attention'"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_what_is_no_network_is_refused_in_one_line(model, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        network(model, **arguments)
    assert "\n" not in str(error.value)


# -- tensors under a policy ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["squeezenet1_1", "inception_v3_no_aux", "efficientnet_b0", "timm:efficientnet_b0"])
@pytest.mark.parametrize("target", ["bismo-edge", "bitfusion"])
def test_a_policy_of_all_tensors_that_layers_read_costs_as_much_as_uniform_widths(model, target):
    net = network(model)
    found = costs(target, net, policy_of(net))
    each = cost_model(target)
    for layer, counts in zip(net.layers, each.counted(net.layers), strict=True):
        bits = 8 if layer.reads[0].is_image else 4  # of the input
        assert found[layer.name] == (each.layer_cost(layer, 4, bits) if counts else 0)


def test_the_image_has_8_bits_unless_the_policy_names_it():
    net = network("efficientnet_b0")
    each, stem = cost_model("bitops"), net.layers[0]
    assert costs(each, net, policy_of(net))[stem.name] == stem.num_macs * 4 * 8
    assert costs(each, net, policy_of(net, x=6))[stem.name] == stem.num_macs * 4 * 6


def test_concatenated_tensors_run_at_the_widest():
    net = network("squeezenet1_1")
    bismo, layer = cost_model("bismo-cloud"), net.layer("features.4.squeeze")  # reads cat(expand1x1, expand3x3)
    for one, three in ((3, 6), (6, 3)):
        policy = policy_of(net, features_3_expand1x1_activation=one, features_3_expand3x3_activation=three)
        found = costs(bismo, net, policy)
        assert found["features.4.squeeze"] == bismo.layer_cost(layer, 4, 6)
        assert found["features.6.squeeze"] == bismo.layer_cost(net.layer("features.6.squeeze"), 4, 4)
    # the concatenation itself, or the layer's own input, come before what they are made of
    policy = policy_of(net, features_3_expand1x1_activation=3, features_3_expand3x3_activation=6, cat=2)
    assert costs(bismo, net, policy)["features.4.squeeze"] == bismo.layer_cost(layer, 4, 2)
    policy = BitPolicy(policy.model, policy.input_shape, dict(policy.sites) | {"features.4.squeeze.input": 7})
    assert costs(bismo, net, policy)["features.4.squeeze"] == bismo.layer_cost(layer, 4, 7)


def test_four_branches_and_their_average_pooling_run_at_the_widest():
    net = network("inception_v3_no_aux")
    policy = policy_of(net, weights=3, activations=2, relu_5=3, relu_7=5, relu_10=4, relu_11=2)
    found = costs("bitfusion", net, policy)
    each = cost_model("bitfusion")
    for name in ("Mixed_5c.branch1x1.conv", "Mixed_5c.branch_pool.conv"):
        assert found[name] == each.layer_cost(net.layer(name), 3, 5)
    assert found["Mixed_5d.branch1x1.conv"] == each.layer_cost(net.layer("Mixed_5d.branch1x1.conv"), 3, 2)


@pytest.mark.parametrize(
    "model, pooled, reducing, scaled, projecting",
    [
        (
            "efficientnet_b0",
            "features_1_0_block_0_2",
            "features.1.0.block.1.fc1",
            "mul",
            "features.1.0.block.2.0",
        ),
        ("timm:efficientnet_b0", "blocks_0_0_bn1_act", "blocks.0.0.se.conv_reduce", "mul", "blocks.0.0.conv_pw"),
    ],
)
def test_squeeze_and_excitation_layers_are_costed_at_the_widths_that_they_read(
    model, pooled, reducing, scaled, projecting
):
    net, each = network(model), cost_model("bitfusion")
    assert f"{pooled}.output" in sources(net), sorted(sources(net))[:4]
    found = costs(each, net, policy_of(net, **{pooled: 7, scaled: 3}))
    assert found[reducing] == each.layer_cost(net.layer(reducing), 4, 7)  # average pooling keeps the width
    assert found[projecting] == each.layer_cost(net.layer(projecting), 4, 3)  # the gated product
    assert found[reducing] != each.layer_cost(net.layer(reducing), 4, 4)


@pytest.mark.parametrize(
    "model, unread",
    [
        ("squeezenet1_1", "classifier_2"),  # the network's output
        ("efficientnet_b0", "features_1_0_block_1_scale_activation"),  # a gate: it is multiplied, no layer reads it
        ("timm:efficientnet_b0", "blocks_0_0_se_gate"),
        ("resnet18", "layer1_0_bn2"),  # summed before a layer reads it
    ],
)
def test_tensors_that_feed_no_layer_cost_nothing(model, unread):
    net = network(model)
    assert f"{unread}.output" in net.site_names - sources(net)
    assert costs("bismo-edge", net, policy_of(net)) == costs("bismo-edge", net, policy_of(net, **{unread: 2}))


@pytest.mark.parametrize(
    "model, tensor, layer",
    [
        ("squeezenet1_1", "features_3_expand3x3_activation", "features.4.squeeze"),
        ("inception_v3_no_aux", "relu_10", "Mixed_5c.branch1x1.conv"),
        ("efficientnet_b0", "mul", "features.1.0.block.2.0"),
        ("efficientnet_b0", "features_1_0_block_1_activation", "features.1.0.block.1.fc2"),
        ("timm:efficientnet_b0", "blocks_0_0_bn2", "blocks.1.0.conv_pw"),
    ],
)
def test_a_float_tensor_is_refused_by_layer_and_tensor(model, tensor, layer):
    net = network(model)
    complete = policy_of(net)
    policy = BitPolicy(
        net.model, net.input_shape, {name: bits for name, bits in complete.sites.items() if name != f"{tensor}.output"}
    )
    with pytest.raises(UserError) as error:
        cost_model("bitfusion").policy_cost(net.layers, policy)
    message = str(error.value)
    assert message.startswith(f"layer {layer!r} reads 32 bits (float: the policy names neither '{layer}.input' nor all")
    assert f"{tensor}.output" in message
    assert message.endswith("bitfusion takes 1 to 8")
    assert "\n" not in message


def test_a_layer_that_is_called_twice_names_both_tensors():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(self.stem(x)).relu())

    net = describe("twice", Twice(), (3, 8, 8))
    widths = {"stem.weight": 4, "conv.weight": 4, "stem.output": 4}
    with pytest.raises(UserError, match=r"all of its sources \(stem.output, relu.output\)"):
        cost_model("bitfusion").policy_cost(net.layers, BitPolicy("twice", (3, 8, 8), widths))
    found = costs("bitops", net, BitPolicy("twice", (3, 8, 8), widths | {"relu.output": 6}))
    assert found["conv"] == 2 * 64 * 8 * 8 * 9 * 4 * 6
