"""The progress of `prepare` as metrics of Ray, from its driver."""

from pipeline.on_ray.gauges import Gauges

PREPARE_METRICS = {
    "ast_prepare_clips": "Clips done, rejected ones among them",
    "ast_prepare_num_clips": "Clips to prepare in all",
    "ast_prepare_rejects": "Clips rejected so far by this command",
    "ast_prepare_clips_per_s": "Clips prepared per second since the command began",
    "ast_prepare_bytes_per_s": "Bytes of audio read per second since the command began",
}
"""Names without Ray's prefix `ray_`, and descriptions."""


def prepare_gauges(output: str) -> Gauges:
    """The gauges of a data set in the making, labelled by its folder and the folder's name."""
    return Gauges(PREPARE_METRICS, {"dataset": output.rpartition("/")[2], "folder": output})
