"""Ray Data without its own words: our progress and errors are enough, and its log file has all."""

import logging

import ray.data


def quiet_ray_data() -> None:
    """Keep Ray Data from printing progress bars, plans, and errors before we do."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)
