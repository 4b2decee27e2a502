"""Tables of names and values for the terminal."""

from rich.console import Group
from rich.table import Table
from rich.text import Text


def name_value_table() -> Table:
    """A table of names and values."""
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column()
    return table


def titled(title: str, table: Table) -> Group:
    """A table under its title, which may be wider than the table."""
    return Group(Text(title, style="bold"), table)
