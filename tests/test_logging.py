"""The package logger leaves the application's choices alone."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(("before", "expected"), [("", "20"), ('logger.setLevel("ERROR")', "40")])
def test_a_level_that_was_set_before_the_import_stays(before: str, expected: str):
    code = (
        f'import logging; logger = logging.getLogger("scscore"); {before}\nimport scscore._logging; print(logger.level)'
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == expected
