"""Tags the parts of a source on Ray Data.

In: the parts that are still to be tagged. On CPUs, a pool of actors decodes, scores and writes part
after part. For GPUs, tasks on CPUs decode parts and cut them into segments, and a pool of actors
scores and writes these as they come; Ray Data holds the tasks back while the actors are behind.
Out: the progress of each segment. What was in flight on an actor or node that dies is done again.
"""

import json
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import ray
import ray.data
import torch

from pipeline.audio.sandbox import DecoderProcess
from pipeline.errors import UserError
from pipeline.manifest.manifest import Clip
from pipeline.on_ray import process
from pipeline.on_ray.quiet import quiet_ray_data
from pipeline.on_ray.shared_files import SharedPaths, check_here, check_shared, seen_here
from pipeline.on_ray.tasks import MAX_LOST, away_from_gpus
from pipeline.terminal import log
from trainer.on_ray.actor_pool import pass_by_value
from trainer.on_ray.device import worker_device
from trainer.on_ray.settings import Workers
from trainer.on_ray.workers import fit_workers, room_now
from trainer.tagging.job import Work
from trainer.tagging.load import ModelChoice, load_tagger
from trainer.tagging.model import Tagger
from trainer.tagging.score import Done, TagJob, progress, tag_part, tag_segment
from trainer.tagging.segments import Segment, cut_part

_Row = dict[str, Any]
_PART, _SEGMENT, _DONE, _ERROR = "part", "segment", "done", "error"
"""Columns, of which a row has one: something pickled."""

_BLOCK_BYTES = 2**24
_MOST_TRIES = 100
"""Until Ray takes a lost node for dead, a part on it is tried again each second, in vain."""
_MOST_RESTARTS = 2 * MAX_LOST
"""Of an actor, in all parts together: one that dies each time would be restarted for ever."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """What a worker needs to know of a part."""

    number: int
    clips: list[Clip]
    done: Mapping[int, bool]
    """Its segments that are done already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _CutSegment:
    """A segment that is to be scored."""

    part: _Part
    segment: Segment


@dataclass(frozen=True, kw_only=True, slots=True)
class _Setting:
    """What all workers share."""

    choice: ModelChoice
    job: TagJob
    threads: int
    paths: Sequence[str]
    """Local paths that each must see."""
    log_level: int

    def enter(self) -> None:
        """Prepare a process."""
        process.set_up(self.log_level)
        check_here(self.paths)


def tag_on_ray(
    choice: ModelChoice, workers: Workers, shared: SharedPaths
) -> Callable[[Work], Iterator[Done]]:
    """Tags parts on a connected Ray.

    Args:
        choice: the model; every node must be able to read it.
        workers: each actor is one; `num` is the most at once.
        shared: local paths that the actors use; refused if not all nodes see them.

    The returned function raises UserError: one of a worker; no node has room for an actor, or none
    came; or the nodes do not see the same files.
    """

    def tag(work: Work) -> Iterator[Done]:
        if not work.parts:
            return
        quiet_ray_data()
        pass_by_value()
        # A segment goes to an actor as soon as it is cut, not once there are 128 MB of them.
        ray.data.DataContext.get_current().target_max_block_size = _BLOCK_BYTES
        one, fits = fit_workers(replace(workers, num=1), runs=workers.num)
        check_shared(shared)
        setting = _Setting(
            choice=choice,
            job=work.job,
            threads=one.cpus,
            paths=seen_here(shared),
            log_level=log.level(),
        )
        items = [{_PART: pickle.dumps(part)} for part in _parts(work)]
        rows: ray.data.Dataset = ray.data.from_items(items, override_num_blocks=len(items))
        with warnings.catch_warnings():
            # Ray 2.60 deprecates such arguments, and has no other way to limit the repetitions
            # or to choose nodes.
            warnings.filterwarnings("ignore", message="`ray_remote_args(_fn)?` is deprecated")
            if one.use_gpu:
                rows = rows.map_batches(
                    partial(_cut, setting),
                    batch_size=1,
                    num_cpus=1,
                    max_retries=MAX_LOST,
                    scheduling_strategy="DEFAULT",
                    ray_remote_args_fn=partial(away_from_gpus, {"CPU": 1.0}),
                )
            done = _score(rows, setting, one, most=min(fits, workers.num), num_parts=len(items))
        for row in done.iter_rows():
            if row[_ERROR]:
                raise pickle.loads(row[_ERROR])
            yield Done(**json.loads(row[_DONE]))

    return tag


def _parts(work: Work) -> Iterator[_Part]:
    for part in work.parts:
        yield _Part(
            number=part.number,
            clips=work.recordings.clips_of(part),
            done=work.done.get(part.number, {}),
        )


def _score(
    rows: ray.data.Dataset, setting: _Setting, one: Workers, *, most: int, num_parts: int
) -> ray.data.Dataset:
    """The rows through a pool of actors: parts, or for GPUs segments, of which a part has many."""
    return rows.map_batches(
        _Scorer,
        batch_size=1,
        fn_constructor_args=(setting,),
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            initial_size=max(1, min(most, num_parts, room_now(one))),
            max_size=max(1, most if one.use_gpu else min(most, num_parts)),
            # A part is long; the next segment should be there when one is done.
            max_tasks_in_flight_per_actor=2 if one.use_gpu else 1,
        ),
        # Actors on GPUs leave all CPUs to the tasks that decode for them.
        num_cpus=0 if one.use_gpu else one.cpus,
        num_gpus=one.gpus if one.use_gpu else None,
        max_restarts=_MOST_RESTARTS,
        max_task_retries=_MOST_TRIES,
    )


def _cut(setting: _Setting, batch: Mapping[str, Any]) -> Iterator[_Row]:
    """The segments of a part, in a task."""
    part: _Part = pickle.loads(batch[_PART][0])
    try:
        setting.enter()
        with DecoderProcess() as decoder:
            for segment in cut_part(part.clips, setting.job.cutting, decoder):
                if segment.number in part.done:
                    yield _row(done=progress(segment, setting.job))
                else:
                    yield _row(segment=_CutSegment(part=part, segment=segment))
    except UserError as error:
        yield _row(error=error)


class _Scorer:
    """An actor with the model, for parts or for segments of them."""

    def __init__(self, setting: _Setting) -> None:
        torch.set_num_threads(setting.threads)
        self._setting = setting

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[_Row]:
        row = {name: values[0] for name, values in batch.items()}
        try:
            self._setting.enter()
            if _PART in row:
                yield from self._tag_part(pickle.loads(row[_PART]))
            elif row[_SEGMENT]:
                yield self._tag_segment(pickle.loads(row[_SEGMENT]))
            else:
                yield {name: np.array([row[name]], object) for name in (_DONE, _ERROR)}
        except UserError as error:
            yield _row(error=error)

    def _tag_part(self, part: _Part) -> Iterator[_Row]:
        clips, job = part.clips, self._setting.job
        for done in tag_part(part.number, clips, self._tagger, job, part.done, self._decoder):
            yield _row(done=done)

    def _tag_segment(self, cut: _CutSegment) -> _Row:
        part, job = cut.part, self._setting.job
        return _row(done=tag_segment(part.number, cut.segment, part.clips, self._tagger, job))

    @cached_property
    def _tagger(self) -> Tagger:
        return load_tagger(self._setting.choice, worker_device())

    @cached_property
    def _decoder(self) -> DecoderProcess:
        """Ends with this process, whose end closes its pipe."""
        return DecoderProcess()


def _row(
    *, segment: _CutSegment | None = None, done: Done | None = None, error: UserError | None = None
) -> _Row:
    values = {
        _SEGMENT: b"" if segment is None else pickle.dumps(segment),
        _DONE: "" if done is None else json.dumps(asdict(done)),
        _ERROR: b"" if error is None else pickle.dumps(error),
    }
    return {name: np.array([value], object) for name, value in values.items()}
