"""Figures of a running step as metrics of Ray, which Prometheus collects from every node.

All are gauges, also those that only grow: Ray 2.60 drops a gauge that has not been set for two of
its reports, 20 s, but keeps a counter of every run until its node ends. So what is shown here is
set again and again, until the step is over.
"""

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from ray.util.metrics import Gauge

from pipeline.threads import beside

_REFRESH_S = 5.0
"""Less than Ray's 10 s from report to report."""
_LEAST_S = 0.5
"""Shortest time between two values, as a training may set them thousands of times a second."""


class Gauges:
    """The gauges of a step, with the same labels each, for the length of a `with` block."""

    def __init__(self, descriptions: Mapping[str, str], labels: Mapping[str, str]) -> None:
        """`descriptions`: by the gauges' names, to which Ray adds the prefix `ray_`."""
        self._gauges = {
            name: Gauge(name, text, tuple(labels)).set_default_tags(dict(labels))
            for name, text in descriptions.items()
        }
        self._values: dict[str, float] = {}
        self._shown_at = time.monotonic() - _LEAST_S
        self._lock = threading.Lock()
        self._refreshing = beside(self._refresh, name="metrics")

    def set(self, values: Mapping[str, float | None]) -> None:
        """Set some of the gauges; leaves those that are None as they were."""
        with self._lock:
            self._values |= {name: value for name, value in values.items() if value is not None}
            if time.monotonic() - self._shown_at >= _LEAST_S:
                self._show()

    def _show(self) -> None:
        self._shown_at = time.monotonic()
        for name, value in self._values.items():
            self._gauges[name].set(value)

    def _refresh(self, is_over: threading.Event) -> None:
        while not is_over.wait(_REFRESH_S):
            with self._lock:
                self._show()

    def __enter__(self) -> Self:
        self._refreshing.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with self._lock:
                self._show()
        finally:
            self._refreshing.__exit__(kind, error, traceback)
