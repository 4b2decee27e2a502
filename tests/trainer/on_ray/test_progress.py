"""The progress bar's words and total."""

from dataclasses import replace

from trainer.checkpoints.progress import CurvePoint, EpochResult
from trainer.on_ray import progress as ray_progress
from trainer.run.run_progress import RunProgress

POINT = CurvePoint(
    step=7,
    epoch=2,
    loss=0.0125,
    grad_norm=0.321,
    clips_per_s=812.4,
    data_wait_share=0.034,
    peak_memory_bytes=12_300_000_000,
    mfu=0.413,
)
RUN = RunProgress(
    run="/a/run",
    step=7,
    num_steps=9,
    epoch=2,
    lr=1e-5,
    num_bad_steps=3,
    last_point=POINT,
    last_epoch=None,
)


def test_unstarted_runs_count_as_long_as_the_first() -> None:
    assert ray_progress._num_steps([replace(RUN, num_steps=7)], 3) == 21
    runs = [replace(RUN, num_steps=7), RUN]
    assert ray_progress._num_steps(runs, 3) == 23


def test_single_run_shows_its_newest_figures_and_scores() -> None:
    assert ", ".join(ray_progress._notes([RUN], 1)) == (
        "loss 0.013, epoch 2, lr 1.0e-05, 3 steps skipped, 812 clips/s, 3% waiting for data, "
        "12.3 GB, 41% of peak FLOPs, gradient 0.32"
    )
    epoch = EpochResult(epoch=1, step=5, mAP=0.6, accuracy=0.5)
    notes = ray_progress._notes([replace(RUN, last_epoch=epoch)], 1)
    assert notes[:4] == ["mAP 0.600", "loss 0.013", "epoch 2", "accuracy 0.500"]


def test_unknown_figures_are_left_out() -> None:
    new = replace(RUN, num_bad_steps=0, last_point=None)
    assert ray_progress._notes([new], 1) == ["epoch 2", "lr 1.0e-05"]


def test_progress_names_every_run_even_before_all_report() -> None:
    first = replace(RUN, run="/a/seed-0", epoch=3, step=18, num_steps=18)
    second = replace(RUN, run="/a/seed-1", epoch=1, step=2, num_steps=18)
    assert ray_progress._notes([first], 2) == ["seed-0 trained"]
    assert ray_progress._notes([first, second], 2) == ["seed-0 trained", "seed-1 epoch 1"]
