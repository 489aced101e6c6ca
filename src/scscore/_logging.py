"""The package logger: visible in a notebook, silent about it where the application has set up logging itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("scscore")


def _only_without_root_handlers(record: logging.LogRecord) -> bool:
    return not logging.getLogger().handlers


if not logger.handlers:
    _handler = logging.StreamHandler()
    _handler.setFormatter(logging.Formatter("%(message)s"))
    _handler.addFilter(_only_without_root_handlers)
    logger.addHandler(_handler)
    if logger.level == logging.NOTSET:  # else the user has chosen one before this was imported
        logger.setLevel(logging.INFO)


@contextmanager
def quiet() -> Iterator[None]:
    """Only errors, while a function calls another whose messages are about copies."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
