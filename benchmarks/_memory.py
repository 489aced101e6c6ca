"""Peak resident memory of a block of code."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _status_mb(key: str) -> float | None:
    """A size of the process status (Linux), in MB."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return None


def _max_rss_mb() -> float:
    """Peak resident memory since the process started: never goes down."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


class PeakMemory:
    """Context manager with ``peak_mb`` (of the process) and ``extra_mb`` (above what it held at entry) afterwards.

    On Linux the kernel's high-water mark is reset at entry. Elsewhere, or where that is not permitted, ``peak_mb`` is
    the peak since the process started, and ``extra_mb`` a lower bound: how far the block raised that peak.
    """

    peak_mb: float = float("nan")
    extra_mb: float = float("nan")

    def __enter__(self) -> PeakMemory:
        try:
            _CLEAR.write_text("5")
            before = _status_mb("VmRSS")
        except OSError:
            before = None
        self._resettable = before is not None
        self._before = before if before is not None else _max_rss_mb()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        peak = _status_mb("VmHWM") if self._resettable else None
        self.peak_mb = peak if peak is not None else _max_rss_mb()
        self.extra_mb = max(self.peak_mb - self._before, 0.0)
