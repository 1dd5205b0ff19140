"""Scripts, committed files and paper folders are where and what the design says."""

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FOLDERS = sorted(path.parent for path in REPOSITORY.glob("methods/*/__init__.py"))
TABLES_ONLY = sorted({path.parent for path in REPOSITORY.glob("methods/*/*") if path.is_file()} - {*FOLDERS})
TEXT = {".py", ".sh", ".md", ".yaml", ".toml", ".json", ".txt", ".cff", ""}
# Home folders and this project's own surroundings; written in parts, so that this file does not match itself.
MACHINE_PATH = re.compile(
    "|".join(["/ho" + r"me/\w", "/ro" + r"ot/\w", "/Us" + r"ers/\w", "/wo" + r"rk/\w", r"[A-Z]:\\\\?Us"])
)


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout: which files are committed is not known")
    return [REPOSITORY / name for name in done.stdout.split("\0") if name]


def scripts() -> list[Path]:
    return [*sorted((REPOSITORY / "reproduce").glob("*.sh")), REPOSITORY / "tests" / "run.sh"]


@pytest.mark.parametrize("script", scripts(), ids=lambda path: path.name)
def test_scripts_are_executable_and_parse(script):
    if script.name != "environment.sh":  # read by the others, not run
        assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#")
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_ci_calls_the_test_script():
    assert (REPOSITORY / ".ci" / "run").read_text() == "bash tests/run.sh\n"
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)


def test_no_committed_file_names_a_path_of_some_machine():
    found = []
    for path in tracked():
        if path.suffix in TEXT and path.is_file():
            lines = enumerate(path.read_text().splitlines(), 1)
            found += [
                f"{path.relative_to(REPOSITORY)}:{n}: {line.strip()}" for n, line in lines if MACHINE_PATH.search(line)
            ]
    assert found == []


def test_no_data_weights_or_runs_are_committed():
    unwanted = {".pth", ".th", ".npz", ".safetensors", ".ckpt", ".pt"}
    assert [path for path in tracked() if path.suffix in unwanted or "runs" in path.relative_to(REPOSITORY).parts] == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_paper_folder_has_its_parts(folder):
    names = ["__main__.py", "module.py"]
    if (folder / "tables").is_dir():  # the baselines without a paper have no page of their own
        names.append("README.md")
    for name in names:
        assert (folder / name).is_file(), f"{folder.name} lacks {name}"
    assert list((folder / "configs").glob("*.yaml")), f"{folder.name} has no configuration"


@pytest.mark.parametrize("folder", TABLES_ONLY, ids=lambda path: path.name)
def test_a_folder_without_code_has_tables_and_says_so(folder):
    assert "tables only so far" in (folder / "README.md").read_text().lower()
    assert list((folder / "tables").glob("*.yaml")), f"{folder.name} has neither code nor tables"
    unwanted = {path.name for path in folder.iterdir()} - {"README.md", "tables", "static.py", "__pycache__"}
    assert not unwanted, f"{folder.name} has code, but no __init__.py"


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("methods/*/static.py")), ids=lambda path: path.parent.name)
def test_formulas_rest_on_cost_models_and_common_parts_only(path):
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)]
    ours = {name for name in names if (REPOSITORY / name.partition(".")[0]).is_dir()}
    assert {name.partition(".")[0] for name in ours} <= {"hardware", "common"}


def test_the_template_is_no_paper_in_the_list_of_tables():
    from reproduce.tables import list_tables, load_table

    assert not [name for name in list_tables() if name.startswith("_")]
    assert "hmq/table1" in list_tables()
    assert load_table("_template/example").rows[1].name == "digits_w4"
