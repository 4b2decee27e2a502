"""Clips that cannot be used: each is recorded with its stage and reason, never skipped silently.

The ledger is a Parquet table with one row per rejected clip. Reasons contain no ids, paths or
numbers of a single file, so that equal reasons can be counted together.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from pipeline.errors import UserError
from pipeline.terminal.units import counted

Stage = Literal["fetch", "decode", "fbank"]

TOO_LONG = "longer than"
TOO_LARGE = "larger than the limit on files"
"""How the reasons begin that a limit gives, which an option can raise."""
MAY_RETURN = ("not found", "access refused")
"""Reasons of the stage `fetch` that may no longer hold."""

SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "uri", "stage", "reason")])
_ROWS_AT_ONCE = 65_536


class RejectError(Exception):
    """One clip cannot be used; the job goes on."""

    def __init__(self, stage: Stage, reason: str) -> None:
        super().__init__(stage, reason)
        self.stage = stage
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """A row of the ledger."""

    id: str
    uri: str
    stage: str
    reason: str

    @property
    def may_return(self) -> bool:
        """Whether the file was not there, or not for us, and may be now."""
        return self.stage == "fetch" and self.reason in MAY_RETURN

    @property
    def limit(self) -> str | None:
        """The limit that rejected the clip; None: no limit did."""
        if self.stage == "decode" and self.reason.startswith(TOO_LONG):
            return "max_duration_s"
        if self.stage == "fetch" and self.reason.startswith(TOO_LARGE):
            return "max_file_bytes"
        return None


class Ledger:
    """Collects rejected clips. There may be millions, so it keeps them in columns."""

    def __init__(self) -> None:
        self._tables: list[pa.Table] = []
        self._latest: list[Reject] = []

    def add(self, rejects: Iterable[Reject]) -> None:
        """Add some clips, in any order."""
        self._latest += rejects
        if len(self._latest) >= _ROWS_AT_ONCE:
            self._tables.append(to_table(self._latest))
            self._latest = []

    def table(self) -> pa.Table:
        """All clips, ordered by id."""
        tables = pa.concat_tables([*self._tables, to_table(self._latest)])
        # In one piece, so that the bytes of its file do not depend on when clips were added.
        return tables.sort_by("id").combine_chunks()


def to_table(rejects: Sequence[Reject]) -> pa.Table:
    """Some clips as rows of the ledger."""
    columns = ([getattr(reject, name) for reject in rejects] for name in SCHEMA.names)
    return pa.table([pa.array(column, pa.string()) for column in columns], schema=SCHEMA)


def count_reasons(ledger: pa.Table) -> dict[str, int]:
    """Number of rejected clips by "stage: reason", the most frequent first."""
    groups = ledger.group_by(["stage", "reason"]).aggregate([([], "count_all")]).to_pylist()
    counts = {f"{group['stage']}: {group['reason']}": group["count_all"] for group in groups}
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def check_share(reasons: dict[str, int], num_clips: int, *, max_share: float, ledger: str) -> None:
    """Fail the job when more of the clips were rejected than the user allows.

    Args:
        reasons: counts from `count_reasons`.
        num_clips: clips in the manifest.
        max_share: the largest share of them that may be rejected, 0 to 1.
        ledger: path of the full list, for the message.

    Raises:
        UserError: the share is above `max_share`, or no clip is left.
    """
    num_rejects = sum(reasons.values())
    if num_rejects / num_clips <= max_share and num_rejects < num_clips:
        return
    most_frequent = "; ".join(f"{reason} ({count})" for reason, count in list(reasons.items())[:3])
    raise UserError(
        "",
        f"{num_rejects} of {counted(num_clips, 'clip')} "
        f"{'was' if num_rejects == 1 else 'were'} rejected, more than the allowed share of "
        f"{max_share:g}; most frequent: {most_frequent}. {ledger} lists all",
        "repair them and run again with --retry-rejects, take them out of the manifest, or raise "
        "--max-reject-share",
    )
