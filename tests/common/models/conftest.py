import os
from pathlib import Path

import pytest


@pytest.fixture
def shared_data() -> Path:
    """The folder with published weights and data, which is no part of the repository."""
    folder = Path(os.environ.get("SHARED_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs published weights: no folder {folder} (set SHARED_DATA)")
    return folder
