"""The README's "Add a paper", followed to the letter in a copy of the repository with an invented method."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PARTS = ("common", "data", "hardware", "methods", "reproduce", "tests", "README.md", "pyproject.toml")
COMMANDS = """
import json, sys
import pytest
from reproduce.cli import main
for arguments in json.loads(sys.argv[1]):
    print("$", *arguments, flush=True)
    try:
        status = pytest.main(arguments[1:]) if arguments[0] == "pytest" else main(arguments)
    except SystemExit as end:  # --help
        status = end.code
    print("status", int(status), flush=True)
"""


def hashes(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def steps(root: Path) -> list[str]:
    """The numbered steps of the README's section, each as one line."""
    section = (root / "README.md").read_text().partition("## Add a paper")[2].partition("\n## ")[0]
    return [" ".join(text.split()) for text in re.split(r"^\d\. ", section, flags=re.M)[1:]]


def rename(folder: Path, *pairs: tuple[str, str]) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            text = path.read_text()
            for old, new in pairs:
                text = text.replace(old, new)
            path.write_text(text)


@pytest.fixture(scope="module")
def copy(tmp_path_factory, repository) -> Path:
    """A copy of the repository in which a user has added the paper of an invented method, `snap`."""
    root = tmp_path_factory.mktemp("copy") / "repository"
    ignored = shutil.ignore_patterns("__pycache__", "runs", "ledger", ".pytest_cache")
    for name in PARTS:
        source = repository / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=ignored)
        else:
            root.mkdir(exist_ok=True)
            shutil.copy(source, root / name)
    before = hashes(root)
    copy_folder, write_method, write_files, write_script, run_suite = steps(root)

    assert "Copy `methods/_template` to `methods/<paper>`" in copy_folder
    paper = root / "methods" / "snap"
    shutil.copytree(root / "methods" / "_template", paper)
    rename(paper, ("GridPull", "Snap"), ("methods._template", "methods.snap"), ("methods/_template", "methods/snap"))

    assert "`quantizer.py`" in write_method and "`module.py` (a `QuantizedModule`)" in write_method
    (paper / "quantizer.py").write_text(
        '"""Snap\'s quantizer: the common one, which keeps its odd levels."""\n\n'
        "from common.quantizers import SymmetricQuantizer\n\n\n"
        'class SnapQuantizer(SymmetricQuantizer):\n    """The invented grid."""\n'
    )
    module = (paper / "module.py").read_text()
    module = module.replace(
        "from common.quantizers import SymmetricQuantizer", "from methods.snap.quantizer import SnapQuantizer"
    )
    (paper / "module.py").write_text(module.replace("SymmetricQuantizer(", "SnapQuantizer("))

    assert "`configs/*.yaml`" in write_files and "`tables/*.yaml`" in write_files and "`static.py`" in write_files
    table = (paper / "tables" / "example.yaml").read_text().replace("wcr: trained", "wcr: static", 1)
    (paper / "tables" / "table1.yaml").write_text(table)
    (paper / "tables" / "example.yaml").unlink()
    (paper / "static.py").write_text(
        '"""Formulas of the table."""\n\n\n'
        'def wcr(inputs):\n    """Every weight at one width."""\n    return 32 / inputs["bit_width"]\n'
    )

    assert "`reproduce/<paper>_<data>.sh` (four lines) and `tests/methods/<paper>/`" in write_script
    script = root / "reproduce" / "snap_digits.sh"
    script.write_text(
        "#!/usr/bin/env bash\n# Snap's invented table on digits. Cost: seconds.\nset -euo pipefail\n"
        'cd "$(dirname "${BASH_SOURCE[0]}")/.." && source reproduce/environment.sh\n'
        'exec "$PY" -m reproduce run snap/table1 "$@"\n'
    )
    script.chmod(0o755)
    (root / "tests" / "methods" / "snap").mkdir(parents=True)
    (root / "tests" / "methods" / "snap" / "test_snap.py").write_text(
        "from methods.snap.static import wcr\n\n\n"
        "def test_four_bits_are_an_eighth():\n    assert wcr({'bit_width': 4}) == 8\n"
    )

    assert "`bash tests/run.sh`" in run_suite
    after = hashes(root)
    assert {name: after.get(name) for name in before} == before  # no existing file was edited
    return root


@pytest.fixture(scope="module")
def shown(copy, start_weights) -> dict[str, str]:
    """Command -> what it printed, all of them in one process of the copy."""
    report = copy.parent / "report"
    quick = ["--here", "--epochs", "1", "--trainer.limit_train_batches", "2", "--data.subset", "192"]
    compare = ["--methods", "snap,lsq", "--bits", "4/32,4/4", "--first-last", "same", "--out", str(report)]
    commands = [
        ["compare", "--help"],
        ["compare", "--list"],
        ["tables", "snap/table1"],
        ["run", "snap/table1", "--list"],
        ["compare", *compare, "--json", str(report / "compare.json"), *quick, "--model.weights", str(start_weights)],
    ]
    suites = ["tests/conformance", "tests/methods/snap"]
    commands.append(["pytest", "--collect-only", "-p", "no:cacheprovider", "-n", "0", "-k", "snap", *suites])
    places = {"RUNS_DIR": str(copy.parent / "runs"), "LEDGER_DIR": str(copy.parent / "ledger")}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        cwd=copy,
        env={**os.environ, **places, "PYTHONPATH": str(copy), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    parts = re.split(r"^\$ ", done.stdout, flags=re.M)[1:]
    return {" ".join(command[:2]): text for command, text in zip(commands, parts, strict=True)}


def test_it_appears_in_help_and_list(shown):
    assert re.search(r"Methods: .*\bsnap\b", " ".join(shown["compare --help"].split()))
    assert re.search(r"^ +snap +trainer .*\[bit_width\]", shown["compare --list"], re.M)


def test_it_appears_in_tables_with_its_computed_cells(shown):
    text = shown["tables snap/table1"]
    assert "status 0" in text
    assert re.search(r"digits_w2 +wcr +16\.0 +16.* equal", text)
    assert "snap/table1" in shown["run snap/table1"]


def test_it_is_compared_where_it_has_the_widths(shown, copy):
    text = shown["compare --methods"]
    assert "status 0" in text
    lines = json.loads((copy.parent / "report" / "compare.json").read_text())
    own = {line["size"]: line for line in lines if line["method"] == "snap"}
    assert own["4/32"]["rank"]
    assert own["4/32"]["packed_bytes"] == 9448
    assert own["4/4"]["state"] == "not offered"
    assert "no argument activation_bit_width" in own["4/4"]["reason"]


def test_conformance_suite_and_own_test_find_it(shown, copy):
    collected = shown["pytest --collect-only"]
    assert "status 0" in collected
    assert "test_snap.py::test_four_bits_are_an_eighth" in collected
    assert collected.count("[snap]") > 10
    assert subprocess.run(["bash", "-n", "reproduce/snap_digits.sh"], cwd=copy).returncode == 0
