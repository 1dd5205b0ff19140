"""Two processes (gloo): each sees its own half of every epoch, also after resuming in mid-epoch."""

import json

import pytest
import torch

from data import DigitsData


def run(train, folder, **settings):
    """Train in two forked processes, on one thread each, since OpenMP's threads do not survive a fork.

    Returns rank -> its batches (epoch, batch index, hash), the weights after the run, the folder of checkpoints.
    """
    folder.mkdir()

    def save(module):
        weights = {name: tensor.tolist() for name, tensor in module.state_dict().items()}
        (folder / f"{module.global_rank}.json").write_text(json.dumps([module.batches, weights]))

    result = train(
        DigitsData(batch_size=128), strategy="ddp_fork", devices=2, max_epochs=2, on_train_end=save, **settings
    )
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0][1] == ranks[1][1]
    return [batches for batches, _ in ranks], ranks[0][1], result.checkpoints


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_two_ranks_share_the_epochs_and_resume_together(train, tmp_path, one_thread):
    whole, weights, checkpoints = run(train, tmp_path / "whole", checkpoint={"every_n_train_steps": 1})
    for batches in whole:
        assert [tuple(batch[:2]) for batch in batches] == [(epoch, index) for epoch in range(2) for index in range(5)]
    assert len({batch[2] for batches in whole for batch in batches}) == 20
    resumed, resumed_weights, _ = run(train, tmp_path / "resumed", ckpt_path=checkpoints / "step=7.ckpt")
    assert resumed == [batches[7:] for batches in whole]
    assert resumed_weights == weights
