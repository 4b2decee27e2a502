"""What is odd about a manifest, found by its labels and counts before days of training on it."""

import pyarrow.compute as pc

from pipeline.manifest.class_counts import count_clips
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.warnings.counts import count_warnings
from pipeline.manifest.warnings.groups import group_warnings
from pipeline.manifest.warnings.labels import are_ids, label_warnings, split_warnings
from pipeline.storage.stored_table import batches


def manifest_warnings(manifest: Manifest) -> list[str]:
    """One line for each oddity, with what to do; the manifest must be valid.

    The labels of a source with a coverage come from its official list: they are not doubted.
    """
    splits, folds = count_clips(manifest, "split"), count_clips(manifest, "fold")
    is_official = manifest.coverage is not None
    num_clips = manifest.clips.num_rows
    num_labelled = sum(
        pc.sum(pc.greater(pc.list_value_length(batch["labels"]), 0)).as_py()
        for batch in batches(manifest.clips, ["labels"])
    )
    are_classes = is_official or not are_ids(splits, num_labelled)
    return [
        *manifest.warnings,
        *([] if is_official else label_warnings(splits, num_clips, num_labelled)),
        *split_warnings(splits),
        *group_warnings(manifest),
        *count_warnings(splits, folds, are_classes=are_classes, is_official=is_official),
    ]
