"""Deep Compression: clusters that stay, values that keep their number, the float phase before."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from common.errors import UserError
from common.packing import load_packed, read_metadata
from common.quantizers.kmeans import KMeansQuantizer, kmeans
from common.quantizers.lsq import LSQ
from methods.deep_compression import DeepCompression


class Watch(Callback):
    """Codes, centroids and the number of values of one layer before every batch."""

    def __init__(self, site="conv2.weight"):
        self.site, self.codes, self.centroids, self.values = site, [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.record(pl_module)

    def record(self, pl_module):
        quantizer, weight = pl_module.quantizers[self.site], pl_module.network.get_parameter(self.site)
        self.codes.append(quantizer.codes.clone())
        self.centroids.append(quantizer.centroids.detach().clone())
        self.values.append(quantizer(weight).detach().unique().numel())


def test_all_layers_share_weights():
    found = DeepCompression(weight_bit_width=3).quantizers
    assert len(found) == 6 and {int(q.bit_width) for q in found.values()} == {3}
    assert all(isinstance(q, KMeansQuantizer) for q in found.values())


def test_eight_bits_of_the_ends_are_those_of_lsq():
    found = DeepCompression(first_last="8bit").quantizers
    kinds = [type(found[f"{name}.weight"]) for name in ("conv1", "conv2", "linear")]
    assert kinds == [LSQ, KMeansQuantizer, LSQ]


def test_clusters_stay_and_centroids_train(fit, tmp_path):
    module = DeepCompression(weight_bit_width=2)
    start = module.network.get_parameter("conv2.weight").detach().clone()
    watch = Watch()
    fit(module, steps=6, callbacks=[watch])
    watch.record(module)
    assert watch.centroids[0].shape == (4,)
    assert all(torch.equal(codes, watch.codes[1]) for codes in watch.codes[1:])
    assert not torch.equal(watch.centroids[-1], watch.centroids[1]) and set(watch.values) == {4}
    expected, _ = kmeans(start, 4)
    quantizer = module.quantizers["conv2.weight"]
    assert torch.equal(quantizer.codes, (start[..., None] - expected).abs().argmin(-1))
    # The file: indices and the trained codebook; the float weights have become the same values.
    metadata = read_metadata(tmp_path / "packed.safetensors")["encodings"]["conv2.weight"]
    assert metadata["kind"] == "levels" and metadata["bits"] == [2]
    packed = load_packed(tmp_path / "packed.safetensors")[0].get_parameter("conv2.weight").detach()
    assert torch.equal(packed, quantizer.centroids.detach()[quantizer.codes.long()])
    assert torch.equal(packed, module.network.get_parameter("conv2.weight"))


def test_weights_train_in_float_until_they_are_clustered(fit):
    module = DeepCompression(weight_bit_width=1, cluster_at=0.5)
    watch = Watch()
    fit(module, steps=8, callbacks=[watch])
    watch.record(module)
    # seen before the step: the clusters are made at the beginning of the fifth one
    assert [count > 2 for count in watch.values] == [True] * 5 + [False] * 4
    assert torch.equal(watch.centroids[1], watch.centroids[4])
    assert not torch.equal(watch.centroids[4], watch.centroids[5])
    assert not torch.equal(watch.centroids[5], watch.centroids[-1])


def test_starts_differ():
    centroids = []
    for start in ("linear", "density", "random"):
        module = DeepCompression(weight_bit_width=4, start=start)
        module.calibrate([])
        centroids.append(module.quantizers["conv1.weight"].centroids.detach())
    assert not torch.equal(centroids[0], centroids[1]) and not torch.equal(centroids[1], centroids[2])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"cluster_at": 1.0}, "cluster_at must be a fraction of the training below 1, got 1.0"),
        ({"start": "even"}, "start must be one of .*, got 'even'"),
        ({"weight_bit_width": 9}, "bit_width of KMeansQuantizer must be one of"),
        ({"activation_bit_width": 8}, "quantizes weights alone"),
    ],
)
def test_settings_that_it_does_not_have(settings, message):
    with pytest.raises(UserError, match=message):
        DeepCompression(**settings)
