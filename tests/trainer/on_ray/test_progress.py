"""The progress bar's words and total."""

from trainer.on_ray import progress as ray_progress


def test_runs_that_have_not_begun_are_as_long_as_the_first() -> None:
    assert ray_progress._num_steps([{"num_steps": 7}], 3) == 21
    assert ray_progress._num_steps([{"num_steps": 7}, {"num_steps": 9}], 3) == 23


def test_the_words_behind_the_bar() -> None:
    values = {
        "run": "/a/run",
        "epoch": 2,
        "lr": 1e-5,
        "loss": 0.0125,
        "grad_norm": 0.321,
        "clips_per_s": 812.4,
        "data_wait_share": 0.034,
        "peak_memory_bytes": 12_300_000_000,
        "mfu": 0.413,
        "num_bad_steps": 3,
        "mAP": None,
        "accuracy": None,
    }
    assert ray_progress._note([values], 1) == (
        "epoch 2, lr 1.0e-05, 812 clips/s, 3% waiting for data, 12.3 GB, 41% of peak FLOPs, "
        "gradient 0.32, 3 steps skipped, loss 0.013"
    )
    scored = values | {"mAP": 0.6, "accuracy": 0.5, "scored_epoch": 1}
    assert ray_progress._note([scored], 1).endswith(
        "loss 0.013, mAP 0.600, accuracy 0.500 (epoch 1)"
    )
    unknown = dict.fromkeys(values.keys() - {"run", "epoch", "lr"})
    assert ray_progress._note([values | unknown | {"num_bad_steps": 0}], 1) == "epoch 2, lr 1.0e-05"


def test_of_several_runs_each_is_named_also_while_one_alone_has_told_of_itself() -> None:
    first = {"run": "/a/seed-0", "epoch": 3, "step": 18, "num_steps": 18, "loss": 0.7}
    second = {"run": "/a/seed-1", "epoch": 1, "step": 2, "num_steps": 18, "loss": 0.9}
    assert ray_progress._note([first], 2) == "seed-0 trained"
    assert ray_progress._note([first, second], 2) == "seed-0 trained, seed-1 epoch 1"
