"""The lecture's schedule is the default."""

from methods.inq import INQ
from reproduce.tables import load_table


def test_portions_are_those_of_the_lecture():
    rows = load_table("lecture/inq_schedule").rows
    assert [float(row.published["portion"]) / 100 for row in rows] == INQ().portions
