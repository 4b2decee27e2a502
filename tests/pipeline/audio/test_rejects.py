"""The ledger of rejected clips."""

import random
from collections import Counter

import pytest

from pipeline import storage
from pipeline.audio import rejects
from pipeline.audio.rejects import Ledger, Reject, count_reasons

REASONS = ["cut short or damaged", "the file is empty", "not found"]


def some_rejects(num: int) -> list[Reject]:
    rng = random.Random(num)
    return [
        Reject(
            id=f"{rng.choice('aZ_-é音')}{number}",
            uri=f"s3://sounds/{number}.flac",
            stage=rng.choice(["fetch", "decode"]),
            reason=rng.choice(REASONS),
        )
        for number in range(num)
    ]


@pytest.mark.parametrize("num", [0, 1, 7, 100])
@pytest.mark.parametrize("rows_at_once", [1, 10, 1_000])
def test_ledger_has_the_same_bytes_however_it_is_filled(
    monkeypatch: pytest.MonkeyPatch, num: int, rows_at_once: int
) -> None:
    found = some_rejects(num)
    whole = Ledger()
    whole.add(found)
    expected = storage.encode_table(whole.table())
    monkeypatch.setattr(rejects, "_ROWS_AT_ONCE", rows_at_once)
    ledger = Ledger()
    random.Random(1).shuffle(found)
    for start in range(0, num, 4):
        ledger.add(found[start : start + 4])
    rows = ledger.table().to_pylist()
    assert [row["id"] for row in rows] == sorted(reject.id for reject in found)
    assert {Reject(**row) for row in rows} == set(found)
    assert storage.encode_table(ledger.table()) == expected


def test_reasons_are_counted_the_most_frequent_first() -> None:
    found = some_rejects(200)
    ledger = Ledger()
    ledger.add(found)
    counts = count_reasons(ledger.table())
    assert counts == Counter(f"{reject.stage}: {reject.reason}" for reject in found)
    assert list(counts) == sorted(counts, key=lambda reason: (-counts[reason], reason))
    assert count_reasons(Ledger().table()) == {}
