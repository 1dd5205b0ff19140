"""A killed and resumed run sees the batches, and ends with the weights, of one that ran through."""

import pytest
import torch

from data import DigitsData
from data.errors import DataError
from data.loaders import ResumableLoader

STEPS = 5  # batches per epoch: 1437 // 256


def digits(**settings):
    return DigitsData(batch_size=256, **settings)


def assert_continues(resumed, whole, first):
    """resumed saw exactly the steps of whole from number `first` (counted from 0) on and ended with its weights."""
    assert resumed.batches == whole.batches[first:]
    for name, tensor in whole.weights.items():
        assert torch.equal(resumed.weights[name], tensor), name


@pytest.mark.parametrize("step", [1, STEPS + 2, 2 * STEPS - 1])
@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_steps": 3 * STEPS, "max_epochs": -1}])
@pytest.mark.parametrize("validation", [{}, {"val_check_interval": 2}, {"limit_val_batches": 0}])
def test_resuming_in_mid_epoch_equals_an_uninterrupted_run(train, step, limit, validation):
    whole = train(digits(), checkpoint={"every_n_train_steps": 1}, **limit, **validation)
    assert [batch[:2] for batch in whole.batches] == [(epoch, batch) for epoch in range(3) for batch in range(STEPS)]
    assert len({batch[2] for batch in whole.batches}) == 3 * STEPS
    resumed = train(digits(), ckpt_path=whole.checkpoints / f"step={step}.ckpt", **limit, **validation)
    assert_continues(resumed, whole, first=step)


@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_steps": 3 * STEPS, "max_epochs": -1}])
@pytest.mark.parametrize("saved", ["after the step", "at the end of the epoch", "after validation"])
def test_resuming_from_the_end_of_an_epoch_starts_the_next_one(train, limit, saved):
    checkpoint = {
        "after the step": {"every_n_train_steps": STEPS},
        "at the end of the epoch": {"every_n_epochs": 1, "save_on_train_epoch_end": True},
        "after validation": {"every_n_epochs": 1, "save_on_train_epoch_end": False},
    }[saved]
    whole = train(digits(), checkpoint=checkpoint, **limit)
    resumed = train(digits(), ckpt_path=whole.checkpoints / f"step={2 * STEPS}.ckpt", **limit)
    assert [batch[2] for batch in resumed.batches] == [batch[2] for batch in whole.batches[2 * STEPS :]]
    assert torch.equal(resumed.weights["linear.weight"], whole.weights["linear.weight"])


@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_steps": 9, "max_epochs": -1}])
@pytest.mark.parametrize(
    "step, checkpoint",
    [
        (4, {"every_n_train_steps": 1}),
        (6, {"every_n_train_steps": 1}),
        (6, {"every_n_epochs": 1, "save_on_train_epoch_end": True}),
        (6, {"every_n_epochs": 1, "save_on_train_epoch_end": False}),
    ],
)
def test_resuming_with_limited_training_batches(train, limit, step, checkpoint):
    whole = train(digits(), checkpoint=checkpoint, limit_train_batches=3, **limit)
    assert len(whole.batches) == 9
    resumed = train(digits(), ckpt_path=whole.checkpoints / f"step={step}.ckpt", limit_train_batches=3, **limit)
    assert [batch[2] for batch in resumed.batches] == [batch[2] for batch in whole.batches[step:]]
    assert torch.equal(resumed.weights["linear.weight"], whole.weights["linear.weight"])


def test_a_run_stopped_inside_a_step_repeats_that_step(train):
    whole = train(digits(), max_epochs=3)
    checkpoint = {"save_on_exception": True, "every_n_epochs": 3}
    stopped = train(digits(), max_epochs=3, interrupt_at=(1, 3), checkpoint=checkpoint)
    assert stopped.batches == whole.batches[: STEPS + 3]
    resumed = train(digits(), max_epochs=3, ckpt_path=stopped.checkpoints / f"step={STEPS + 3}.ckpt")
    assert_continues(resumed, whole, first=STEPS + 3)


def test_a_run_killed_and_resumed_twice(train):
    whole = train(digits(), max_epochs=3)
    checkpoint = {"every_n_train_steps": 2}
    first = train(digits(), max_epochs=3, interrupt_at=(1, 4), checkpoint=checkpoint)
    second = train(
        digits(),
        max_epochs=3,
        interrupt_at=(2, 2),
        checkpoint=checkpoint,
        ckpt_path=first.checkpoints / "step=8.ckpt",
    )
    third = train(digits(), max_epochs=3, ckpt_path=second.checkpoints / "step=12.ckpt")
    assert first.batches == whole.batches[:9]
    assert second.batches == whole.batches[8:12]
    assert_continues(third, whole, first=12)


def test_validation_sees_the_same_batches_before_and_after_resuming(train):
    whole = train(digits(eval_batch_size=100), max_epochs=2, checkpoint={"every_n_train_steps": 2})
    resumed = train(digits(eval_batch_size=100), max_epochs=2, ckpt_path=whole.checkpoints / "step=6.ckpt")
    assert len(whole.val_batches) == 8
    assert whole.val_batches[:4] == whole.val_batches[4:] == resumed.val_batches


def test_a_mid_epoch_checkpoint_refuses_another_batch_size(train):
    whole = train(digits(), max_epochs=1, checkpoint={"every_n_train_steps": 2})
    with pytest.raises(DataError, match="stands in mid-epoch with batch_size 256, length 5, the data now have"):
        train(DigitsData(batch_size=128), max_epochs=1, ckpt_path=whole.checkpoints / "step=2.ckpt")


def test_an_epoch_end_checkpoint_takes_another_batch_size():
    state = {"epoch": 1, "position": 5, "length": 5, "batch_size": 256, "seed": 0}
    loader = DigitsData(batch_size=128).train_dataloader()
    loader.load_state_dict(state)
    assert loader.state_dict()["epoch"] == 1


def test_without_lightning_a_loader_continues_from_its_state_and_counts_epochs():
    loader = digits().train_dataloader()
    first = [labels for _, labels in loader]
    second = [labels for _, labels in loader]
    assert not torch.equal(first[0], second[0])
    loader = digits().train_dataloader()
    batches = iter(loader)
    next(batches), next(batches)
    state = loader.state_dict()
    assert state == {"epoch": 0, "position": 2, "length": 5, "batch_size": 256, "seed": 0}
    other = digits().train_dataloader()
    other.load_state_dict(state)
    rest = [labels for _, labels in other]
    assert all(torch.equal(a, b) for a, b in zip(rest, first[2:], strict=True))
    assert all(torch.equal(a, b) for a, (_, b) in zip(second, other, strict=True))


def test_a_pass_broken_off_is_followed_by_the_next_epoch():
    loader = digits().train_dataloader()
    next(iter(loader))
    first = next(iter(loader))[0]
    loader = digits().train_dataloader()
    loader.set_epoch(1)
    assert torch.equal(next(iter(loader))[0], first)


class Indices(ResumableLoader):
    """Gives the indices themselves."""

    def _batches(self, indices, start):
        for batch in range(start, len(self)):
            yield self._batch_indices(indices, batch).tolist()


def as_rank(monkeypatch, rank, world_size):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world_size)


@pytest.mark.parametrize("drop_last, samples", [(True, 6), (False, 7)])
def test_ranks_share_one_permutation_in_equal_strided_parts(monkeypatch, drop_last, samples):
    whole = [i for batch in Indices(20, 2, seed=3, shuffle=True, drop_last=False) for i in batch]
    assert sorted(whole) == list(range(20))
    for rank in range(3):
        as_rank(monkeypatch, rank, 3)
        part = list(Indices(20, 2, seed=3, shuffle=True, drop_last=drop_last))
        assert [i for batch in part for i in batch] == (whole + whole[:1])[rank::3][:samples]


def test_ranks_evaluate_every_sample_once(monkeypatch):
    seen = []
    for rank in range(3):
        as_rank(monkeypatch, rank, 3)
        loader = Indices(20, 4, seed=0, shuffle=False, drop_last=False)
        batches = list(loader)
        assert len(batches) == len(loader) == 2
        seen += [i for batch in batches for i in batch]
    assert sorted(seen) == list(range(20))


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        loader = Indices(100, 10, seed=seed, shuffle=True, drop_last=True)
        loader.set_epoch(epoch)
        torch.manual_seed(seed + epoch)  # the global generator has no say
        return list(loader)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 1) != order(1, 0)


def test_iterating_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    next(iter(digits().train_dataloader()))
    assert torch.equal(torch.get_rng_state(), before)


def test_no_complete_batch_is_an_error():
    with pytest.raises(DataError, match="needs 5000 training images, but there are 1437: lower batch_size"):
        DigitsData(batch_size=5000).train_dataloader()


def test_batch_size_must_be_positive():
    with pytest.raises(DataError, match="batch_size must be at least 1, got 0"):
        DigitsData(batch_size=0).train_dataloader()
