"""How long a calibration may take."""

import time

import pytest
import torch

from methods.ptq import PTQ


@pytest.mark.slow
def test_mobilenet_v2_with_64_images_takes_less_than_90_seconds():
    """Time of this process on one thread, building and tracing included: other work on the machine does not count."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(16, 3, 224, 224, generator=generator) for _ in range(4)]
    start = time.process_time()
    module = PTQ(
        model="mobilenet_v2",
        weight_granularity="per_tensor",
        weight_grid="affine",
        activation_observer="kl",
        equalization=True,
        absorption=True,
        bias_correction="empirical",
    )
    module.calibrate(images)
    seconds = time.process_time() - start
    print(f"{seconds:.1f} s")
    assert seconds < 90
