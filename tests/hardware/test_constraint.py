import pytest

from common.errors import UserError
from hardware import parse_constraint

TABLE = "# quantity: {}\n# unit: {}\nlayer,weight_bits,activation_bits,cost\nconv,4,4,2.5\n"


@pytest.mark.parametrize(
    "text, target, limit",
    [
        ("latency@bismo-edge<=50ms", "bismo-edge", 50),
        ("latency@bismo-edge<=0.05s", "bismo-edge", 50),
        ("latency@bismo-edge<=2500us", "bismo-edge", 2.5),
        ("latency@bismo-cloud-fast<=1e2ms", "bismo-cloud-fast", 100),
        ("latency@bitfusion-search<=.5ms", "bitfusion-search", 0.5),
        ("latency@bitfusion<=7ms", "bitfusion", 7),
        ("energy@bitfusion<=10mJ", "bitfusion-energy", 10),
        ("energy@bitfusion-energy<=10mJ", "bitfusion-energy", 10),
        ("energy<=0.02J", "bitfusion-energy", 20),
        ("energy<=1500uJ", "bitfusion-energy", 1.5),
        ("energy<=2e6nJ", "bitfusion-energy", 2),
        ("size<=70KiB", "size", 71_680),
        ("size@size<=1.5MiB", "size", 1_572_864),
        ("size<=70KB", "size", 70_000),
        ("size<=2MB", "size", 2_000_000),
        ("size<=4096B", "size", 4096),
        ("bitops<=1.2G", "bitops", 1_200_000_000),
        ("bitops<=3T", "bitops", 3_000_000_000_000),
        ("bitops<=5M", "bitops", 5_000_000),
        ("bitops<=5K", "bitops", 5000),
        ("bitops@bitops<=1000", "bitops", 1000),
        ("  latency @ bismo-edge <= 50 ms ", "bismo-edge", 50),
    ],
)
def test_quantities_and_units(text, target, limit):
    constraint = parse_constraint(text)
    assert constraint.model.name == target
    assert constraint.limit == pytest.approx(limit, rel=1e-12)
    assert constraint.text == text.strip()


@pytest.mark.parametrize(
    "folder", ["tables", "my tables", "a-b.c_d", "at@home", "2024.01/pixel-6a", "x<y", "caf\u00e9"]
)
def test_a_measured_table_may_lie_anywhere(tmp_path, folder):
    path = tmp_path / folder / "phone.v1-2.csv"
    path.parent.mkdir(parents=True)
    path.write_text(TABLE.format("latency", "us"))
    constraint = parse_constraint(f"latency@table:{path}<=3ms")
    assert constraint.model.name == f"table:{path}"
    assert (constraint.limit, constraint.model.unit) == (pytest.approx(3000), "us")


def test_a_measured_table_is_of_one_quantity(tmp_path):
    path = tmp_path / "joules.csv"
    path.write_text(TABLE.format("energy", "J"))
    assert parse_constraint(f"energy@table:{path}<=300mJ").limit == pytest.approx(0.3)
    with pytest.raises(UserError, match="gives energy, not latency"):
        parse_constraint(f"latency@table:{path}<=3ms")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "constraint '' is not of the form latency@bismo-edge<=50ms"),
        ("latency@bismo-edge<50ms", "not of the form"),
        ("latency@bismo-edge>=50ms", "not of the form"),
        ("latency@bismo-edge<=", "not of the form"),
        ("latency@bismo-edge<=ms", "not of the form"),
        ("latency@bismo-edge<=-5ms", "not of the form"),
        ("latency@<=5ms", "not of the form"),
        ("<=5ms", "not of the form"),
        ("latency@bismo-edge<=5ms or so", "not of the form"),
        ("latency@bismo-edge<=5ms\nsize<=5KB", "not of the form"),
        ("speed@bismo-edge<=5ms", "unknown quantity 'speed'; choose one of latency, energy, size, bitops"),
        ("latency<=5ms", "names no target: latency@bismo-edge or bismo-cloud or "),
        ("latency@bismo-egde<=5ms", "unknown target 'bismo-egde'; did you mean bismo-edge"),
        ("latency@phone<=5ms", "unknown target 'phone'; choose one of bismo-edge, "),
        ("latency@bitfusion-energy<=5ms", "bitfusion-energy gives energy, not latency; latency is given by bismo-edge"),
        ("energy@bismo-edge<=5mJ", "bismo-edge gives latency, not energy; energy is given by bitfusion-energy"),
        ("size@bismo-edge<=5KB", "bismo-edge gives latency, not size; size is given by size"),
        ("latency@bismo-edge<=5", "unknown unit '' of latency; choose one of s, ms, us"),
        ("latency@bismo-edge<=5MB", "unknown unit 'MB' of latency; choose one of s, ms, us"),
        ("energy<=5ms", "unknown unit 'ms' of energy; choose one of J, mJ, uJ, nJ"),
        ("size<=5kb", "unknown unit 'kb' of size; choose one of B, KB, MB, KiB, MiB"),
        ("bitops<=5ms", "unknown unit 'ms' of bitops; choose one of none, K, M, G, T"),
        ("size<=1.2.3MB", "'1.2.3' is no number"),
        ("size<=.MB", "'.' is no number"),
        ("size<=0MB", "the limit must be positive and finite"),
        ("size<=1e999MB", "the limit must be positive and finite"),
        ("latency@table:/no/such.csv<=5ms", "cannot read /no/such.csv: No such file"),
        ("latency@table:<=5ms", "cannot read .: Is a directory"),
    ],
)
def test_errors_are_one_line(text, message):
    with pytest.raises(UserError) as error:
        parse_constraint(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
