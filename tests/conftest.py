"""Fixtures every test may use."""

import os
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real data sets: ``$SCSCORE_DATA``, else ``../shared/data`` beside the repository.

    Without the folder the test is skipped; with ``SCSCORE_REQUIRE_DATA=1`` it fails instead.
    """
    given = os.environ.get("SCSCORE_DATA")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if folder.is_dir():
        return folder
    reason = f"no data sets at {folder}: set SCSCORE_DATA to the folder that holds them"
    if os.environ.get("SCSCORE_REQUIRE_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
