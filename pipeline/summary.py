"""What `manifest` and `prepare` tell the user at the end, as tables for the terminal."""

from collections import Counter

import pyarrow.compute as pc
from rich.console import Group
from rich.table import Table
from rich.text import Text

from pipeline.assemble import PrepareSummary
from pipeline.manifest import Manifest


def manifest_summary(manifest: Manifest, path: str) -> Group:
    """Clips, labels, splits and folds."""
    clips = manifest.clips
    table = facts_table()
    table.add_row("clips", f"{clips.num_rows:,}")
    table.add_row("labels", f"{len(manifest.labels):,}")
    for split, count in sorted(Counter(clips["split"].to_pylist()).items()):
        table.add_row(f"clips in {split}", f"{count:,}")
    folds = [fold for fold in sorted(pc.unique(clips["fold"]).to_pylist()) if fold]
    if folds:
        table.add_row("folds", f"{len(folds)}")
    for note in manifest.notes:
        table.add_row("note", note)
    return titled(f"Manifest {path}", table)


def prepare_summary(summary: PrepareSummary) -> Group:
    """What is there now, what was rejected and why, and where the time went."""
    table = facts_table()
    table.add_row("clips", f"{summary.num_clips:,} ({summary.audio_s / 3600:.2f} h)")
    table.add_row("rejected", f"{summary.num_rejects:,}")
    for reason, count in list(summary.rejects_by_reason.items())[:8]:
        table.add_row("", f"{count:,} {reason}")
    table.add_row(
        "shards",
        f"{summary.num_shards:,} ({summary.size_bytes / 1e6:,.0f} MB), "
        f"{summary.num_shards_built:,} built by this run",
    )
    table.add_row("speed", f"{summary.clips_per_s:,.1f} clips/s over {summary.wall_s:.1f} s")
    total_s = sum(summary.stages_s.values()) or 1.0
    stages = (f"{name} {100 * s / total_s:.0f} %" for name, s in summary.stages_s.items())
    table.add_row("time of tasks", ", ".join(stages))
    return titled(f"Data set {summary.output}", table)


def facts_table() -> Table:
    """A table of names and values."""
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column()
    return table


def titled(title: str, table: Table) -> Group:
    """A table under its title, which may be wider than the table."""
    return Group(Text(title, style="bold"), table)
