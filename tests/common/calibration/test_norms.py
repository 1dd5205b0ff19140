"""Running statistics taken anew."""

import torch
from torch import nn

from common.calibration.norms import fresh_statistics


def test_statistics_are_the_mean_over_the_batches_and_modes_return():
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout()).eval()
    network[0].running_mean.fill_(100.0)
    batches = [torch.full((4, 2, 1, 1), value) for value in (1.0, 2.0, 6.0)]
    with fresh_statistics(network), torch.no_grad():
        assert network[0].training and not network[1].training
        for batch in batches:
            network(batch)
    assert network[0].running_mean.tolist() == [3.0, 3.0]
    assert not network[0].training and network[0].momentum == 0.1


def test_train_mode_returns_too():
    network = nn.Sequential(nn.BatchNorm2d(2)).train()
    with fresh_statistics(network):
        pass
    assert network[0].training and network[0].momentum == 0.1
