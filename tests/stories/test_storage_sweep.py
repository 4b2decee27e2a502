"""A hundred storage faults in `prepare`, `verify` and `train`: the same result, or one clean line.

Passing faults hit a share of the requests, or all of them for a while; lasting ones hit all
requests, or those of some objects, from a moment on.
"""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.files import read_manifest, write_manifest
from pipeline.manifest.manifest import Clip, Manifest, from_clips
from tests.conftest import forget_clients
from tests.support.audio import write_clips
from tests.support.faulty_proxy import KINDS, Faults, faulty_proxy
from tests.support.preparation import LABELS, contents
from tests.support.prepared import make_prepared, tiny_recipe
from tests.support.runs import untimed
from tests.support.without_ray import prepare, verify
from trainer.training.loop import train
from trainer.training.world import World

NUM_FAULTS = 100
LASTING = ("slow down", "reset", "cut", "denied", "expired")
NOTE = "_work/damaged.json"
RECIPE = tiny_recipe(train={"epochs": 1})


def fault_of(number: int) -> Faults:
    """Three in four pass; the others last."""
    rng = random.Random(number)
    if number % 4 == 3:
        only = rng.choice(("", "", "tar", "checkpoints", "card.json", "parquet"))
        kind = LASTING[number // 4 % len(LASTING)]
        return Faults(share=1.0, kinds=(kind,), only=only, after=rng.randrange(40), seed=number)
    if number % 4 == 2:
        kinds = (rng.choice(KINDS[:3]),)
        at_most = rng.randrange(2, 7)
        return Faults(share=1.0, kinds=kinds, after=rng.randrange(40), at_most=at_most)
    return Faults(share=0.15, seed=number)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_hundred_faults(
    s3: str, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.faults.RETRY_AFTER_S", (0.05,) * 5)
    manifest = upload(s3, tmp_path)
    prepare(manifest, f"{s3}/reference", max_reject_share=0.0)
    dataset = make_prepared(f"{s3}/data", num_train=16, num_eval=8)
    train(RECIPE, dataset, f"{s3}/run-reference", world=World())
    reference, curves = contents(f"{s3}/reference"), untimed(f"{s3}/run-reference")

    def does_prepare(number: int) -> bool:
        prepare(read_manifest(f"{s3}/m.parquet"), f"{s3}/out-{number}", max_reject_share=0.0)
        proxy.spoil(Faults())
        return contents(f"{s3}/out-{number}") == reference

    def does_verify(number: int) -> bool:
        found = verify(f"{s3}/reference")
        # A lasting fault may begin when all is checked and only the note for `prepare` is left.
        is_lasting = number % 4 == 3
        return not found or (is_lasting and {fault.path for fault in found} == {NOTE})

    def does_train(number: int) -> bool:
        train(RECIPE, dataset, f"{s3}/run-{number}", world=World())
        proxy.spoil(Faults())
        return untimed(f"{s3}/run-{number}") == curves

    steps: list[Callable[[int], bool]] = [does_prepare, does_verify, does_train]
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    with faulty_proxy(s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        forget_clients()
        for number in range(NUM_FAULTS):
            step = steps[number // 4 % len(steps)]
            proxy.spoil(fault_of(number))
            try:
                outcome = "same" if step(number) else "another result"
            except UserError as error:
                outcome = "one line" if "\n" not in str(error) else "several lines"
            except Exception as error:
                outcome = f"traceback of {type(error).__name__}"
            if outcome == "one line" and number % 4 != 3:
                outcome = "ended by a fault that passes"
            outcomes[outcome] += 1
            if outcome not in ("same", "one line"):
                failures.append(f"{number} {step.__name__}: {outcome}, {fault_of(number)}")
            proxy.spoil(Faults())
    print(dict(outcomes))
    assert not failures, "\n".join([str(dict(outcomes)), *failures])


def upload(bucket: str, folder: Path) -> Manifest:
    """Twelve clips and their manifest, in the bucket."""
    clips = []
    for clip in write_clips(folder / "audio", 12):
        uri = f"{bucket}/audio/{Path(clip.uri).name}"
        storage.write_bytes(uri, Path(clip.uri).read_bytes())
        clips.append(Clip(id=clip.id, uri=uri, labels=clip.labels))
    manifest = from_clips(clips, LABELS)
    write_manifest(f"{bucket}/m.parquet", manifest)
    return manifest
