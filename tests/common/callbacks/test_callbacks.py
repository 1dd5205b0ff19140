"""The shared callbacks: published schedules, one effect each, acting again after a resume."""

import json
from types import SimpleNamespace

import pytest

from common.callbacks import PhaseSwitch, PolicyLogger, SavePacked, TargetCompressionSchedule, TemperatureAnnealing
from common.training.schedule import CyclicSchedule


class Module:
    """Stands for a LightningModule: notes what callbacks ask of it."""

    def __init__(self, total_steps=10, search_steps=6, cycles=2):
        self.schedule = CyclicSchedule(total_steps, search_steps, cycles)
        self.total_steps, self.step = total_steps, 0
        self.phases, self.targets, self.temperatures = [], [], []

    def on_phase(self, phase):
        self.phases.append((self.step, phase))

    def set_targets(self, wcr, acr):
        self.targets.append((self.step, wcr, acr))

    def set_temperature(self, temperature):
        self.temperatures.append(temperature)


def run(module, callbacks, until):
    for callback in callbacks:
        callback.setup(None, module, "fit")
    while module.step < until:
        for callback in callbacks:
            callback.on_train_batch_start(None, module, None, 0)
        module.step += 1
    if module.step == module.total_steps:
        for callback in callbacks:
            callback.on_train_end(None, module)
    return module


# -- temperature ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rate, expected",
    [
        (0.01, {0: 1.0, 1: 0.99005, 25: 0.778801, 50: 0.606531, 69: 0.501576, 70: 0.5, 124: 0.5}),
        (0.1353352832366127, {0: 1.0, 1: 0.873423, 2: 0.762868, 5: 0.508304, 6: 0.5}),  # e^-2
    ],
)
def test_temperature_is_equation_12(rate, expected):
    annealing = TemperatureAnnealing(rate)
    found = {update: annealing.temperature(update, cycle_steps=125) for update in expected}
    assert found == pytest.approx(expected, abs=1e-6)


def test_temperature_changes_every_n_steps():
    # CIFAR: 196 steps an epoch, 5 epochs a cycle, N = round(196 / 25) = 8 with 25 updates an epoch.
    annealing = TemperatureAnnealing(0.01)
    assert annealing.temperature(3, 980) == 1.0
    assert annealing.temperature(4, 980) == pytest.approx(0.99005, abs=1e-6)
    assert annealing.temperature(11, 980) == pytest.approx(0.99005, abs=1e-6)
    assert annealing.temperature(196, 980) == pytest.approx(0.778801, abs=1e-6)  # 25 updates after an epoch


def test_temperature_starts_again_in_every_cycle_and_rests_in_fine_tuning():
    module = run(Module(total_steps=8, search_steps=6, cycles=2), [TemperatureAnnealing(0.01)], until=8)
    # 3 steps a cycle, 125 updates: after 0, 41.7 -> 42 and 83.3 -> 83 updates.
    assert module.temperatures == pytest.approx([1.0, 0.657047, 0.5] * 2, abs=1e-6)


@pytest.mark.parametrize("settings", [{"rate": 0}, {"rate": -1}, {"minimum": 0}, {"minimum": 1.5}])
def test_bad_temperatures_are_refused(settings):
    with pytest.raises(ValueError, match="rate must be positive and minimum in"):
        TemperatureAnnealing(**settings)


def test_no_updates_are_refused():
    with pytest.raises(ValueError, match="updates_per_cycle must be at least 1, got 0"):
        TemperatureAnnealing(updates_per_cycle=0)


# -- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target, expected",
    [(8, [4, 5.3333, 6.6667, 8, 8, 8]), (11, [4, 6.3333, 8.6667, 11, 11, 11]), (16, [4, 8, 12, 16, 16, 16])],
)
def test_weight_target_per_cycle(target, expected):
    schedule = TargetCompressionSchedule(target_wcr=target, target_acr=4)
    assert [schedule.targets(cycle)[0] for cycle in range(6)] == pytest.approx(expected, abs=5e-5)
    assert [schedule.targets(cycle)[1] for cycle in range(6)] == [4] * 6


def test_activation_target_per_cycle():
    schedule = TargetCompressionSchedule(target_wcr=4, target_acr=8)
    assert [schedule.targets(cycle)[1] for cycle in range(6)] == pytest.approx([4, 16 / 3, 20 / 3, 8, 8, 8])


def test_a_target_below_the_start_stays_where_it_is():
    assert TargetCompressionSchedule(target_wcr=3, target_acr=2).targets(0) == (3, 2)


def test_targets_are_set_once_a_cycle():
    module = run(Module(12, 12, 6), [TargetCompressionSchedule(8, 4)], until=12)
    assert [step for step, *_ in module.targets] == [0, 2, 4, 6]


def test_targets_are_set_again_after_a_resume():
    module = Module(12, 12, 6)
    module.step = 7
    run(module, [TargetCompressionSchedule(8, 16)], until=9)
    assert module.targets == [(7, 8, 16)]


def test_a_ramp_of_no_cycles_is_refused():
    with pytest.raises(ValueError, match="ramp_cycles must be at least 1, got 0"):
        TargetCompressionSchedule(8, 4, ramp_cycles=0)


@pytest.mark.parametrize("callback", [TargetCompressionSchedule(8, 4), TemperatureAnnealing()])
def test_unsuitable_modules_are_refused(callback):
    with pytest.raises(TypeError, match="SimpleNamespace has no set_t"):
        callback.setup(None, SimpleNamespace(), "fit")


# -- phases -----------------------------------------------------------------------------------------------------------


def test_the_second_phase_begins_once_before_its_first_batch():
    assert run(Module(10, 6), [PhaseSwitch()], until=10).phases == [(6, 2)]


def test_a_search_without_fine_tuning_ends_in_the_second_phase():
    assert run(Module(6, 6), [PhaseSwitch()], until=6).phases == [(6, 2)]


def test_an_interrupted_search_stays_in_the_first_phase():
    switch = PhaseSwitch()
    module = run(Module(6, 6), [switch], until=4)
    switch.on_train_end(None, module)
    assert module.phases == []


@pytest.mark.parametrize("interrupted_at, phases", [(3, [(6, 2)]), (6, [(6, 2)]), (8, [])])
def test_the_switch_happens_once_across_a_resume(interrupted_at, phases):
    first = PhaseSwitch()
    module = run(Module(10, 6), [first], until=interrupted_at)
    second, resumed = PhaseSwitch(), Module(10, 6)
    second.load_state_dict(first.state_dict())
    resumed.step = module.step
    assert run(resumed, [second], until=10).phases == phases


# -- files ------------------------------------------------------------------------------------------------------------


class Logged(Module):
    def policy(self):
        return SimpleNamespace(sites={"a.weight": 8 - self.step})

    def wcr(self):
        return 4.0 + self.step

    def acr(self):
        return 4.0

    def schedule_state(self):
        return {"temperature": 0.5}


def trainer(folder, logger=None):
    return SimpleNamespace(
        log_dir=str(folder), default_root_dir=str(folder), is_global_zero=True, callback_metrics={}, logger=logger
    )


def log(callback, module, folder, until, logger=None):
    callback.on_train_start(trainer(folder, logger), module)
    while module.step < until:
        module.step += 1
        callback.on_train_batch_end(trainer(folder, logger), module, None, None, 0)
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_history_holds_widths_rates_and_schedule(tmp_path):
    lines = log(PolicyLogger(every_n_steps=3), Logged(total_steps=5, search_steps=5), tmp_path, until=5)
    assert [line["step"] for line in lines] == [0, 3, 4]  # every third, and the last
    assert lines[1] == {
        "step": 3,
        "policy/wcr": 8.0,
        "policy/acr": 4.0,
        "policy/temperature": 0.5,
        "bit_widths": {"a.weight": 4},
    }


def test_history_goes_to_the_logger_too(tmp_path):
    seen = []
    logger = SimpleNamespace(log_metrics=lambda numbers, step: seen.append((step, numbers)))
    log(PolicyLogger(every_n_steps=9), Logged(total_steps=5, search_steps=5), tmp_path, until=1, logger=logger)
    assert seen == [(0, {"policy/wcr": 5.0, "policy/acr": 4.0, "policy/temperature": 0.5, "bit_width/a.weight": 7.0})]


def test_a_resumed_run_writes_each_step_once(tmp_path):
    log(PolicyLogger(1), Logged(), tmp_path, until=5)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"step": 5, "poli')  # killed in the middle of a line
    resumed = Logged()
    resumed.step = 3
    lines = log(PolicyLogger(1), resumed, tmp_path, until=10)
    assert [line["step"] for line in lines] == list(range(10))


def test_a_folder_of_its_own(tmp_path):
    log_folder = tmp_path / "elsewhere"
    callback = PolicyLogger(1, folder=str(log_folder))
    callback.on_train_start(trainer(tmp_path), Logged())
    assert (log_folder / "history.jsonl").exists()


def test_logging_every_0_steps_is_refused():
    with pytest.raises(ValueError, match="every_n_steps must be at least 1, got 0"):
        PolicyLogger(0)


def test_an_interrupted_run_writes_no_packed_file(tmp_path):
    module = Module(10, 6)
    module.step = 9
    SavePacked().on_fit_end(trainer(tmp_path), module)
    assert list(tmp_path.iterdir()) == []
