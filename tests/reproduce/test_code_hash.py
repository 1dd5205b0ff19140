"""What a method's code hash covers."""

import pytest

from reproduce import code_hash, ledger
from reproduce.code_hash import imported_modules
from reproduce.settings import Settings


def test_the_modules_are_those_that_a_method_rests_on():
    hmq = imported_modules("methods.hmq", "data.cifar10")
    assert {"methods.hmq.module", "methods.hmq.quantizer", "common.packing", "data.tensor_data", "data.cifar10"} <= hmq
    assert not {"methods.uniform.module", "data.imagenet", "data.digits"} & hmq
    uniform = imported_modules("methods.uniform")
    assert "methods.uniform.module" in uniform
    assert not {"methods.hmq.module", "common.callbacks.temperature"} & uniform


@pytest.fixture
def project(tmp_path, monkeypatch):
    """write(name, text) -> the hash of package `methods.some` afterwards."""
    monkeypatch.setattr(code_hash, "ROOT", tmp_path)

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        code_hash._tree.cache_clear()
        return code_hash.code_hash("methods.some")

    write("common/used.py", "def f(x):\n    return x + 1\n")
    write("common/unused.py", "y = 1\n")
    write("common/__init__.py", "from common.unused import y\nfrom common.used import f\n")
    write("methods/some/__init__.py", "from common import f\n")
    return write


def test_comments_docstrings_and_layout_do_not_count(project):
    before = project("common/used.py", "def f(x):\n    return x + 1\n")
    assert project("common/used.py", 'def f(x):\n    """Adds."""\n    return (x +  # one\n        1)\n') == before


def test_code_counts_and_unused_modules_do_not(project):
    before = project("common/used.py", "def f(x):\n    return x + 1\n")
    assert project("common/unused.py", "y = 2\n") == before
    assert project("common/used.py", "def f(x):\n    return x + 2\n") != before


def test_cost_models_count_only_where_a_run_has_a_constraint(project):
    project("hardware/__init__.py", "from hardware.costs import cost\n")
    project("hardware/costs.py", "from common.only_here import z\ncost = 1\n")
    project("common/only_here.py", "z = 1\n")
    method = "from common import f\n\ndef constrain():\n    from hardware import cost\n"

    def hashes():
        code_hash._tree.cache_clear()
        runs = [Settings("some", "", {"constraint": text}, {}, {}, 0, None) for text in (None, "latency@x<=1ms")]
        return [ledger.run_code_hash(run) for run in (*runs, Settings("some", "", {}, {}, {}, 0, None))]

    project("methods/some/__init__.py", method)
    plain, constrained, without_argument = hashes()
    assert plain == without_argument != constrained
    for name, text in (
        ("hardware/costs.py", "from common.only_here import z\ncost = 2\n"),
        ("common/only_here.py", "z = 2\n"),
    ):
        project(name, text)
        changed = hashes()
        assert changed[0] == plain
        assert changed[1] != constrained
        constrained = changed[1]


def test_a_method_that_imports_no_cost_model_keeps_its_hash(project):
    before = project("common/used.py", "def f(x):\n    return x + 1\n")
    assert code_hash.code_hash("methods.some", without=("hardware",)) == before


def test_a_run_without_a_constraint_is_what_it_was_before_there_were_constraints():
    def of(**arguments):
        return Settings("hmq", "digits", {"target_wcr": 8.0, "seed": None, **arguments}, {}, {}, 0, 50)

    assert of(constraint=None).hash() == of().hash()
    assert of(constraint="latency@bismo-edge<=50ms").hash() != of().hash()
    assert of(constraint="latency@bismo-edge<=50ms").identity()["model"]["constraint"] == "latency@bismo-edge<=50ms"
    assert of().identity()["model"] == {"target_wcr": 8.0, "seed": None}
