"""Numbers for people, in a terminal or on a page."""

_NO_BREAK = "\N{NO-BREAK SPACE}"
_UNITS = (("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12))


def number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` decimals, a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def count(value: float | None) -> str:
    """A whole number with separators, a dash for None."""
    return "–" if value is None else f"{value:,.0f}"


def counted(value: int, one: str, several: str = "") -> str:
    """A number and what it counts: `1 clip`, `1,200 clips`; `several` for other plurals."""
    return f"{value:,} {one if value == 1 else several or f'{one}s'}"


def percent(share: float | None) -> str:
    """A share, 0 to 1, in percent; only 1 is shown as 100 %, and only 0 as 0 %."""
    if share is None:
        return "–"
    if share in (0, 1):
        text = f"{100 * share:.0f}"
    elif share < 0.0005:
        text = "< 0.1"
    else:
        text = "> 99.9" if share >= 0.9995 else f"{100 * share:.1f}"
    return f"{text} %".replace(" ", _NO_BREAK)


def size(value_bytes: float) -> str:
    """Bytes with a unit: `812 kB`, `52 MB`, `1.3 TB`."""
    unit = next((unit for unit in _UNITS if value_bytes < 999.5 * unit[1]), _UNITS[-1])
    scaled = value_bytes / unit[1]
    return f"{scaled:.{1 if scaled < 9.95 else 0}f}{_NO_BREAK}{unit[0]}"


def duration(value_s: float | None) -> str:
    """Seconds with units: `0.8 s`, `47 s`, `2 min 5 s`, `25 min`, `32 h 47 min`."""
    if value_s is None:
        return "–"
    if value_s < 60:
        return f"{value_s:.1f} s" if value_s < 10 else f"{value_s:.0f} s"
    minutes, seconds = divmod(round(value_s), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if minutes < 10 else f"{minutes} min"
    return f"{minutes // 60:,} h {minutes % 60} min"
