"""Results of the pipeline's steps as tables for the terminal."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Group

from pipeline.manifest.manifest import Manifest
from pipeline.storage.stored_table import StoredTable, batches
from pipeline.terminal.tables import name_value_table, titled
from pipeline.terminal.units import duration, size

if TYPE_CHECKING:  # they load PyTorch and Ray, which `manifest` does not need
    from pipeline.dataset.prepare_summary import PrepareSummary
    from pipeline.dataset.verify import Fault
    from pipeline.shards.estimate import Estimate

_FAULTS_SHOWN = 50


def manifest_summary(manifest: Manifest, path: str) -> Group:
    """Clips, labels, splits and folds, and how many of the listed segments were found."""
    clips = manifest.clips
    table = name_value_table()
    table.add_row("clips", f"{clips.num_rows:,}")
    table.add_row("labels", f"{len(manifest.labels):,}")
    if manifest.coverage:
        listed = {**manifest.coverage.splits, "all": manifest.coverage.total}
        for name, clips_of in listed.items():
            parts = (
                f"{getattr(clips_of, kind):,} {kind}"
                for kind in ("listed", "found", "missing", "unreadable")
            )
            table.add_row(f"segments in {name}", ", ".join(parts))
    else:
        for split, count in sorted(_counts(clips, "split").items()):
            table.add_row(f"clips in {split}", f"{count:,}")
    folds = [fold for fold in _counts(clips, "fold") if fold]
    if folds:
        table.add_row("folds", f"{len(folds)}")
    for note in manifest.notes:
        table.add_row("note", note)
    return titled(f"Manifest {path}", table)


def _counts(clips: pa.Table | StoredTable, column: str) -> Counter[Any]:
    """How many clips have each value of a column."""
    counts = Counter[Any]()
    for batch in batches(clips, [column]):
        for entry in pc.value_counts(batch[column]).to_pylist():
            counts[entry["values"]] += entry["counts"]
    return counts


def prepare_summary(summary: "PrepareSummary") -> Group:
    """The data set, the rejected clips by reason, and where the time went."""
    table = name_value_table()
    table.add_row("clips", f"{summary.num_clips:,} ({duration(summary.audio_s)})")
    table.add_row("rejected", f"{summary.num_rejects:,}")
    for reason, count in list(summary.rejects_by_reason.items())[:8]:
        table.add_row("", f"{count:,} {reason}")
    if summary.num_clipped_clips:
        table.add_row("clipped", f"{summary.num_clipped_clips:,} (num_clipped in index.parquet)")
    if summary.num_repaired_clips:
        num_repaired = f"{summary.num_repaired_clips:,}"
        table.add_row(
            "repaired", f"{num_repaired} (files that are odd, but play: repaired in index.parquet)"
        )
    if summary.num_faded_clips:
        table.add_row(
            "faded",
            f"{summary.num_faded_clips:,} (20 dB or more below their files: file_level_dbfs in "
            "index.parquet); if channels cancel each other, use --channel left",
        )
    if summary.low_rate_note:
        table.add_row("low rate", summary.low_rate_note)
    table.add_row(
        "shards",
        f"{summary.num_shards:,} ({size(summary.size_bytes)}), "
        f"{summary.num_shards_built:,} built by this run",
    )
    table.add_row("audio read", size(summary.fetched_bytes))
    if summary.num_clips_built:
        table.add_row("speed", f"{summary.clips_per_s:,.1f} clips/s over {summary.wall_s:.1f} s")
    total_s = sum(summary.stages_s.values()) or 1.0
    stages = (f"{name} {100 * s / total_s:.0f} %" for name, s in summary.stages_s.items())
    table.add_row("time of tasks", ", ".join(stages))
    return titled(f"Data set {summary.output}", table)


def estimate_summary(estimate: "Estimate", output: str) -> Group:
    """The estimated cost of preparing a data set."""
    table = name_value_table()
    table.add_row("clips", f"{estimate.num_clips:,} (about {duration(3600 * estimate.audio_h)})")
    table.add_row("shards", f"{estimate.num_shards:,}")
    table.add_row("to read", f"about {size(estimate.read_bytes)}")
    table.add_row("to write", f"about {size(estimate.written_bytes)}")
    table.add_row("to compute", f"about {estimate.core_h:,.3g} core-hours like this machine's")
    wait = duration(3600 * estimate.wait_h)
    table.add_row("to wait", f"about {wait}, divided among --reads-ahead and CPUs")
    for reason, count in estimate.sampled_rejects.items():
        table.add_row("rejected", f"{count} of {estimate.num_sampled} sampled: {reason}")
    table.add_row("measured on", f"{estimate.num_sampled} random clips; nothing was written")
    return titled(f"Plan of {output}", table)


def faults_summary(faults: "Sequence[Fault]", path: str) -> Group:
    """The faults of a data set, or that it has none."""
    table = name_value_table()
    for fault in faults[:_FAULTS_SHOWN]:
        table.add_row(fault.path, fault.what)
    if len(faults) > _FAULTS_SHOWN:
        table.add_row("", f"and {len(faults) - _FAULTS_SHOWN} more")
    if faults:
        table.add_row("", "run `prepare` again with the same manifest and settings to repair this")
    else:
        table.add_row("checked", "every byte matches the card and the index")
    return titled(f"Data set {path}", table)
