"""Every static cell of every table, against the recorded verdicts."""

import time
from collections import Counter

import pytest

from reproduce import static_check
from reproduce.show import static_cells
from reproduce.tables import list_tables, load_table

AT_LEAST = {"cells": 190, "equal": 170}  # with a print; equal ones without those fitted or given


@pytest.fixture(scope="module")
def computed():
    start = time.process_time()
    cells = [cell for name in list_tables() for cell in static_cells(load_table(name))]
    return cells, time.process_time() - start


def test_no_verdict_is_worse_than_recorded_and_every_difference_has_a_reason(computed):
    assert static_check.faults(static_check.read_verdicts(), computed[0]) == []


def test_most_cells_equal_the_print(computed):
    verdicts = Counter(cell.verdict for cell in computed[0] if cell.verdict)
    assert verdicts.total() >= AT_LEAST["cells"]
    assert verdicts["equal"] >= AT_LEAST["equal"]


def test_they_take_less_than_a_minute(computed):
    assert computed[1] < 60
