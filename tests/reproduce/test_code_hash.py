"""What a run's code hash covers."""

import pytest

from reproduce import code_hash, ledger
from reproduce.code_hash import ALL, definitions
from reproduce.settings import Settings
from reproduce.tables import list_tables, load_table


def test_the_definitions_are_those_that_a_method_rests_on():
    hmq = definitions(("methods.hmq", "METHOD"), ("data.cifar10", "CIFAR10Data"), without=("hardware",))
    assert {
        ("methods.hmq.module", "HMQ"),
        ("methods.hmq.quantizer", "HMQBlock"),
        ("common.training.quantized_module", "QuantizedModule"),
        ("common.graph.trace", "_Tracer"),
        ("common.packing", "save_packed"),
        ("data.tensor_data", "crop_and_flip"),
    } <= hmq
    modules = {module for module, _ in hmq}
    assert not {"methods.uniform.module", "data.imagenet", "data.digits", "hardware"} & modules
    assert ("common.packing", "load_packed") not in hmq
    uniform = definitions(("methods.uniform", "METHOD"))
    assert ("methods.uniform.module", "SAMPLE_PER_BATCH") in uniform
    assert not {"methods.hmq.module", "common.callbacks.temperature"} & {module for module, _ in uniform}


def test_a_run_rests_on_its_own_network_and_data_alone():
    def modules(model, data_name):
        entries = {ledger._MODELS: (model,), ledger._DATA_SETS: (data_name,)}
        return {module for module, _ in definitions(("methods.hmq", "METHOD"), ledger._DATA_SETS, entries=entries)}

    resnet, digits = modules("resnet20", "cifar10"), modules("digits_net", "digits")
    assert {"common.models.cifar_resnet", "data.cifar10"} <= resnet
    assert {"common.models.digits_net", "data.digits"} <= digits
    assert not {"common.models.digits_net", "common.models.vgg_small", "data.digits"} & resnet
    assert "common.models.cifar_resnet" not in modules("resnet50", "cifar10")  # torchvision's


def test_what_is_named_for_a_run_exists():
    """A renamed registry would silently count for nothing."""
    for module, name in (ledger._MODELS, ledger._DATA_SETS, *ledger._WRITERS):
        assert name in code_hash._module(module).units
    for table in map(load_table, list_tables()):
        for row in table.rows:
            if row.run is not None:
                folder = row.run.get("method", table.paper)
                assert definitions((f"methods.{folder}", "METHOD"))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """write(name, text) -> the hash of `methods.some`'s METHOD afterwards."""
    monkeypatch.setattr(code_hash, "ROOT", tmp_path)

    def write(name, text, **settings):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        code_hash._source.cache_clear()
        return code_hash.code_hash(("methods.some", "METHOD"), **settings)

    write("common/used.py", USED)
    write("common/unused.py", "y = 1\n")
    write("common/__init__.py", "from common.unused import y\nfrom common.used import f\n")
    write("methods/some/__init__.py", "from common import f\n\nMETHOD = f\nOTHER = 1\n")
    return write


USED = """\
SCALE = 2

def f(x):
    return SCALE * g(x)

def g(x):
    return x + 1

def h(x):
    return x
"""
LATE = "def value():\n    return 1\n\nother = 1\n"
LAZY = """\
from common.base import Base

class METHOD(Base):
    def run(self):
        from common import late
        return late.value()
"""


def test_comments_docstrings_and_layout_do_not_count(project):
    before = project("common/used.py", USED)
    dressed = USED.replace("def f(x):\n", 'def f(x):\n    """Adds."""\n').replace("x + 1", "(x +  # one\n        1)")
    assert project("common/used.py", '"""A module."""\n' + dressed) == before


@pytest.mark.parametrize("old, new", [("SCALE = 2", "SCALE = 3"), ("x + 1", "x + 2"), ("SCALE * g(x)", "g(x)")])
def test_what_a_method_rests_on_counts(project, old, new):
    assert project("common/used.py", USED.replace(old, new)) != project("common/used.py", USED)


def test_what_stands_beside_it_does_not_count(project):
    before = project("common/used.py", USED)
    assert project("common/unused.py", "y = 2\n") == before
    changed = USED.replace("return x\n", "return -x\n") + "\ndef new(x):\n    return x\n"
    assert project("common/used.py", changed) == before
    assert project("methods/some/__init__.py", "from common import f\n\nMETHOD = f\nOTHER = 2\n") == before


def test_statements_that_define_nothing_count_with_their_module(project):
    before = project("common/used.py", USED)
    registered = project("common/used.py", USED + "\n\nfor i in range(3):\n    f(i)\n")
    assert registered != before
    assert project("common/used.py", USED + "\n\nfor i in range(4):\n    f(i)\n") != registered


def test_classes_their_bases_and_lazy_imports_count(project):
    project("common/base.py", "class Base:\n    x = 1\n")
    project("common/late.py", LATE)
    before = project("methods/some/__init__.py", LAZY)
    assert project("common/late.py", LATE.replace("return 1", "return 2")) != before
    assert project("common/late.py", LATE.replace("other = 1", "other = 2")) == before
    assert project("common/base.py", "class Base:\n    x = 2\n") != before


def test_attributes_of_imported_modules_count_alone(project):
    project("common/late.py", LATE)
    before = project("methods/some/__init__.py", "from common import late\n\nMETHOD = late.value\n")
    assert project("common/late.py", LATE.replace("other = 1", "other = 2")) == before
    assert project("common/late.py", LATE.replace("return 1", "return 2")) != before


def test_one_entry_of_a_table_counts_without_the_others(project):
    table = "from common.used import f, h\n\nTABLE = {'f': f, 'h': h}\n\n\ndef METHOD(name):\n    return TABLE[name]\n"
    project("methods/some/__init__.py", table)

    def of(key, text=USED, table=table):
        project("common/used.py", text)
        return project("methods/some/__init__.py", table, entries={("methods.some", "TABLE"): (key,)})

    changed = USED.replace("return x\n", "return -x\n")
    assert of("f") == of("f", changed) == of("f", table=table.replace("'h': h", "'h': h, 'new': 3"))
    assert of("h") != of("h", changed)
    with pytest.raises(TypeError, match="METHOD is not written as a dict"):
        code_hash.code_hash(("methods.some", "METHOD"), entries={("methods.some", "METHOD"): ("f",)})


def test_names_that_meet_in_a_circle_end(project):
    project("common/used.py", "def f(x):\n    return g(x)\n\n\ndef g(x):\n    return f(x)\n")
    assert definitions(("common.used", "f")) == {("common.used", "f"), ("common.used", "g")}
    assert definitions(("common.used", ALL)) == {("common.used", "f"), ("common.used", "g")}


def test_cost_models_count_only_where_a_run_has_a_constraint(project):
    project("hardware/__init__.py", "from hardware.costs import cost\n")
    project("hardware/costs.py", "from common.only_here import z\ncost = z\n")
    project("common/only_here.py", "z = 1\n")
    project("data/__init__.py", "DATA_SETS = {}\n")
    method = "def METHOD():\n    from hardware import cost\n    return cost\n"

    def hashes():
        code_hash._source.cache_clear()
        runs = [Settings("some", "", {"constraint": text}, {}, {}, 0, None) for text in (None, "latency@x<=1ms")]
        return [ledger.run_code_hash(run) for run in (*runs, Settings("some", "", {}, {}, {}, 0, None))]

    project("methods/some/__init__.py", method)
    plain, constrained, without_argument = hashes()
    assert plain == without_argument != constrained
    for name, text in (
        ("hardware/costs.py", "from common.only_here import z\ncost = z + 1\n"),
        ("common/only_here.py", "z = 2\n"),
    ):
        project(name, text)
        changed = hashes()
        assert changed[0] == plain
        assert changed[1] != constrained
        constrained = changed[1]


def test_a_run_without_a_constraint_is_what_it_was_before_there_were_constraints():
    def of(**arguments):
        return Settings("hmq", "digits", {"target_wcr": 8.0, "seed": None, **arguments}, {}, {}, 0, 50)

    assert of(constraint=None).hash() == of().hash()
    assert of(constraint="latency@bismo-edge<=50ms").hash() != of().hash()
    assert of(constraint="latency@bismo-edge<=50ms").identity()["model"]["constraint"] == "latency@bismo-edge<=50ms"
    assert of().identity()["model"] == {"target_wcr": 8.0, "seed": None}
