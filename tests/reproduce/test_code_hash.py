"""What a method's code hash covers."""

import pytest

from reproduce import code_hash
from reproduce.code_hash import imported_modules


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
