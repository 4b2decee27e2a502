"""Names of a model's classes that the user gives: a text file, or a CSV as AudioSet's."""

from pipeline.errors import UserError
from pipeline.manifest.layouts.segments import read_vocabulary
from pipeline.manifest.text_files import read_text


def read_labels(path: str) -> list[str]:
    """The names in the order of the model's outputs.

    Args:
        path: a CSV with the columns index, mid and display_name, or else a text file with a name a
            line.

    Raises:
        UserError: there is no such file, it is not of that form, or a name is empty or repeated.
    """
    if path.lower().endswith(".csv"):
        return list(read_vocabulary(path).values())
    names = [
        line.strip() for line in read_text(path, "name a file with a class a line").splitlines()
    ]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise UserError(path, "names no class", "write a class a line")
    seen: set[str] = set()
    for number, name in enumerate(names, start=1):
        if not name or name in seen:
            what = f"{name!r} stands there twice" if name else "is empty"
            raise UserError(path, f"line {number}: {what}", "write each class on a line of its own")
        seen.add(name)
    return names
