"""Tables of an ensemble for the terminal."""

from collections.abc import Mapping

from rich.console import Group
from rich.table import Table

from pipeline.terminal.tables import titled
from trainer.scores.metrics import METRICS
from trainer.studies.ensemble.result import EnsembleResult, PaperEnsemble
from trainer.studies.shared import Figures, cells_without_scores, figures_over_runs, table_cells

_OF = {"scores": "", "logits": ", mean of logits", "ranks": ", mean of ranks"}


def make_table(result: EnsembleResult) -> Group:
    """Scores of each member, their mean and standard deviation, and the ensemble's.

    If members were chosen, also those on the clips that they were chosen on.
    """
    counts = None if result.choice is None else result.counts
    num_members = sum(count > 0 for count in result.counts.values())
    of_all = "" if counts is None else f" of {len(result.members)}"
    title = f"Ensemble of {num_members}{of_all} on {result.name}{_OF[result.average]}"
    table = _member_table(result.members, counts)
    states = dict.fromkeys(result.diverged, "diverged")
    states |= {one.run: "failed" for one in result.failed}
    for run, state in states.items():
        cells = cells_without_scores(state, len(METRICS))
        table.add_row(run.rpartition("/")[2], *_count(counts, ""), *cells)
    _add_mean(table, counts, result.mean, result.std)
    table.add_section()
    named, whole = _paper_rows(result)
    for name, scores in named.items():
        table.add_row(name, *_count(counts, ""), *table_cells(scores))
    _add_ensemble(table, result, whole)
    tables = [titled(title, table)]
    if (choice := result.choice) is not None:
        title = f"The same on {choice.name}, where they were chosen by {choice.metric}"
        other = _member_table(choice.members, counts)
        other.add_section()
        _add_both(other, choice.all, choice.ensemble)
        tables.append(titled(title, other))
    return Group(*tables)


def _member_table(members: Mapping[str, Figures], counts: Mapping[str, int] | None) -> Table:
    """A row for each member; with a column of how often each counts, unless each counts once."""
    table = Table()
    table.add_column("model")
    if counts is not None:
        table.add_column("counts", justify="right")
    for name in METRICS:
        table.add_column(name, justify="right")
    for member, figures in members.items():
        count = "" if counts is None else str(counts[member])
        table.add_row(member, *_count(counts, count), *table_cells(figures))
    return table


def ensemble_table(
    title: str, members: Mapping[str, Figures], counts: Mapping[str, int], ensemble: Figures
) -> Group:
    """Scores of members and of their mean, as an ensemble that is evaluated on other clips."""
    shown = counts if set(counts.values()) != {1} else None
    table = _member_table(members, shown)
    _add_mean(table, shown, *figures_over_runs(list(members.values())))
    table.add_section()
    table.add_row("[bold]ensemble", *_count(shown, ""), *_bold(ensemble))
    return titled(title, table)


def _add_mean(table: Table, counts: Mapping[str, int] | None, mean: Figures, std: Figures) -> None:
    table.add_section()
    table.add_row("mean", *_count(counts, ""), *table_cells(mean))
    table.add_row("standard deviation", *_count(counts, ""), *table_cells(std))


def _add_ensemble(table: Table, result: EnsembleResult, whole: str) -> None:
    if result.all is None:
        table.add_row(f"[bold]ensemble{whole}", *_bold(result.ensemble))
    else:
        _add_both(table, result.all, result.ensemble)


def _add_both(table: Table, everything: Figures, chosen: Figures) -> None:
    table.add_row("all, each once", "", *table_cells(everything))
    table.add_row("[bold]chosen ensemble", "", *_bold(chosen))


def _paper_rows(result: EnsembleResult) -> tuple[dict[str, Figures], str]:
    """Rows of the paper's ensembles, but for the one that is the ensemble itself, and its name."""
    rows: dict[str, Figures] = {}
    whole = ""
    for one in result.paper:
        if _is_whole(one, result):
            whole = f" ({one.name})"
        else:
            rows[f"{one.name}: {', '.join(one.members)}"] = one.scores
    return rows, whole


def _is_whole(one: PaperEnsemble, result: EnsembleResult) -> bool:
    is_published = result.average == "scores" and result.choice is None
    return is_published and set(one.members) == set(result.members)


def _count(counts: Mapping[str, int] | None, cell: str) -> list[str]:
    return [] if counts is None else [cell]


def _bold(figures: Figures) -> list[str]:
    return [f"[bold]{cell}" for cell in table_cells(figures)]
