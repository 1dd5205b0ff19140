"""Classification: loss and accuracy by hand."""

import math

import pytest
import torch

from common.training import Classification


def test_loss_is_the_mean_cross_entropy():
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    assert Classification(2).loss(logits, torch.tensor([0, 1])).item() == pytest.approx(
        (math.log(2) + math.log(4)) / 2, abs=1e-6
    )


def test_bfloat16_logits_give_a_float32_loss():
    assert Classification(3).loss(torch.zeros(2, 3, dtype=torch.bfloat16), torch.tensor([0, 1])).dtype == torch.float32


def test_accuracy_in_percent_over_all_batches():
    task = Classification(6)
    ranking = torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])  # class 0 first, class 5 last
    task.update(ranking.expand(3, 6), torch.tensor([0, 0, 1]))
    task.update(ranking.expand(1, 6), torch.tensor([5]))
    result = {name: value.item() for name, value in task.compute().items()}
    assert result == {"top1": 50.0, "top5": 75.0}


def test_compute_starts_anew():
    task = Classification(2)
    task.update(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert task.compute()["top1"].item() == 0.0
    task.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert task.compute()["top1"].item() == 100.0


def test_top5_needs_more_than_five_classes():
    assert list(Classification(5).metrics) == ["top1"]
