"""Augmentation follows the recipe's order and depends on seed, epoch and position alone.

B batch, T frames, F mels.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, chisquare, kstest
from torch import Tensor

from pipeline.errors import SettingValueError
from tests.support.errors import refused
from tests.support.plain_clips import augmented, mixed, padded
from trainer.data.augment import (
    LOG_MEL_FLOOR,
    add_noise_and_roll,
    augment_batch,
    mask_,
    mix_log_mel,
    mix_targets,
    normalise,
)
from trainer.data.augment_draws import (
    AugmentDraws,
    draw_augmentations,
    draw_noise,
    first_frame,
    mask_interval,
    needs_partner,
)
from trainer.data.settings import AugmentSettings

AUDIOSET = {"mean": -4.2677393, "std": 4.5689974}
SMALL = AugmentSettings(frequency_mask=6, time_mask=10, mixup_share=0.5, noise=True, roll_frames=10)
NUM_FRAMES, NUM_MELS = 24, 16


def draw(
    augment: AugmentSettings = SMALL,
    *,
    num: int = 8,
    first: int = 0,
    seed: int = 1,
    epoch: int = 1,
    num_mels: int = NUM_MELS,
    num_frames: int = NUM_FRAMES,
) -> AugmentDraws:
    positions = range(first, first + num)
    return draw_augmentations(
        augment,
        seed=seed,
        epoch=epoch,
        positions=positions,
        num_mels=num_mels,
        num_frames=num_frames,
    )


def rows_of(draws: AugmentDraws, rows: slice) -> AugmentDraws:
    return AugmentDraws(
        **{field.name: getattr(draws, field.name)[rows] for field in dataclasses.fields(draws)}
    )


def raw_batch(num: int = 8, seed: int = 0, num_frames: int = NUM_FRAMES) -> Tensor:
    return torch.randn(num, num_frames, NUM_MELS, generator=torch.Generator().manual_seed(seed)) - 4


def ragged(num: int, seed: int = 0) -> list[Tensor]:
    """Stored clips of 1 frame to some more than the input's."""
    lengths = torch.randint(
        1, 2 * NUM_FRAMES, (num,), generator=torch.Generator().manual_seed(seed)
    )
    long = raw_batch(num, seed, 2 * NUM_FRAMES).half()
    return [clip[:length] for clip, length in zip(long, lengths.tolist(), strict=True)]


def stack(clips: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Clips no longer than the input as the loader gives them."""
    fbanks = torch.stack([padded(clip, NUM_FRAMES) for clip in clips]).to(clips[0].dtype)
    return fbanks, torch.tensor([len(clip) for clip in clips])


def full(num: int) -> Tensor:
    return torch.full((num,), NUM_FRAMES)


def noisy(x: Tensor, draws: AugmentDraws) -> Tensor:
    """With the noise that the loader draws, and rolled."""
    noise = draw_noise(draws, *x.shape[1:])
    return add_noise_and_roll(x, draws, None if noise is None else noise.to(x.device))


def in_a_batch(stored: Tensor, lengths: Tensor, draws: AugmentDraws, **norms: Any) -> Tensor:
    noise = draw_noise(draws, *stored.shape[1:])
    noise = None if noise is None else noise.to(stored.device)
    return augment_batch(stored, lengths, draws, noise=noise, **norms)


def first_frames(draws: AugmentDraws, clips: list[Tensor], partners: list[Tensor]) -> list[Tensor]:
    """Clips, then partners of those that are mixed, cut as the loader does."""
    rows = np.flatnonzero(needs_partner(draws))
    crops = np.concatenate([draws.crop, draws.partner_crop[rows]])
    every = [*clips, *(partners[row] for row in rows)]
    firsts = first_frame(crops, np.array([len(clip) for clip in every]), NUM_FRAMES)
    return [clip[a : a + NUM_FRAMES] for clip, a in zip(every, firsts.tolist(), strict=True)]


@pytest.mark.parametrize("num", [1, 8])
@pytest.mark.parametrize(
    "augment",
    [
        SMALL,
        dataclasses.replace(SMALL, crop="random", mixup_share=1.0),
        dataclasses.replace(SMALL, noise=False, roll_frames=0),
        dataclasses.replace(SMALL, frequency_mask=0, time_mask=0, roll_frames=0),
        dataclasses.replace(SMALL, noise=False, mixup_share=0.0),
    ],
)
def test_batch_equals_clips_augmented_one_by_one(augment: AugmentSettings, num: int) -> None:
    draws, clips, partners = draw(augment, num=num), ragged(num), ragged(num, seed=1)
    expected = [
        augmented(clips[row], partners[row], draws, row, num_frames=NUM_FRAMES, mean=-4.0, std=3.0)
        for row in range(num)
    ]
    read = stack(first_frames(draws, clips, partners))
    out = in_a_batch(*read, draws, mean=-4.0, std=3.0)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, torch.stack(expected), atol=1e-5, rtol=0)


def test_splitting_a_batch_changes_nothing() -> None:
    augment = dataclasses.replace(SMALL, mixup_share=1.0)
    clips, partners = raw_batch(), raw_batch(seed=1)
    whole, *parts = [
        in_a_batch(
            torch.cat([clips[first : first + num], partners[first : first + num]]),
            full(2 * num),
            draw(augment, first=first, num=num),
            mean=-4.0,
            std=3.0,
        )
        for first, num in ((0, 8), (0, 3), (3, 1), (4, 4))
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_batch_stays_on_its_device() -> None:
    # The meta device refuses to mix with another, as an accelerator does.
    augment = dataclasses.replace(SMALL, mixup_share=1.0)
    fbanks, num_frames = raw_batch(16).to("meta"), full(16).to("meta")
    out = in_a_batch(fbanks, num_frames, draw(augment), mean=-4.0, std=3.0)
    assert out.device.type == "meta"
    assert out.shape == (8, NUM_FRAMES, NUM_MELS)


def test_augmentation_leaves_the_input_unchanged() -> None:
    augment = dataclasses.replace(SMALL, mixup_share=1.0)
    for fbanks in (raw_batch(16).half(), raw_batch(16)):
        before = fbanks.clone()
        in_a_batch(fbanks, full(16), draw(augment), mean=-4.0, std=3.0)
        assert torch.equal(fbanks, before)


@settings(max_examples=25)
@given(st.integers(0, 2**64 - 1), st.integers(0, 1000), st.integers(0, 2**40))
def test_draws_depend_on_seed_epoch_and_position_alone(seed: int, epoch: int, first: int) -> None:
    torch.manual_seed(0)
    whole = draw(num=6, first=first, seed=seed, epoch=epoch)
    np.random.seed(1)
    torch.manual_seed(1)
    part = draw(num=2, first=first + 3, seed=seed, epoch=epoch)
    for field in dataclasses.fields(AugmentDraws):
        np.testing.assert_array_equal(
            getattr(whole, field.name)[3:5], getattr(part, field.name), err_msg=field.name
        )


def test_other_seed_epoch_and_position_draw_other_noise() -> None:
    seeds = [draw(num=50, seed=s, epoch=e).noise_seed for s in (1, 2) for e in (1, 2)]
    assert len(np.unique(seeds)) == 200


def test_disabling_a_setting_leaves_the_other_draws_unchanged() -> None:
    every = draw(num=200)
    off: dict[str, Any] = {"frequency_mask": 0, "time_mask": 0, "mixup_share": 0.0, "noise": False}
    changed_by = {
        "frequency_mask": {"frequency_start", "frequency_width"},
        "time_mask": {"time_start", "time_width"},
        "mixup_share": {"mixup_lambda"},
        "noise": {"noise_scale"},
        "roll_frames": {"roll"},
    }
    for setting, value in {**off, "roll_frames": 0}.items():
        other = draw(dataclasses.replace(SMALL, **{setting: value}), num=200)
        changed = {
            field.name
            for field in dataclasses.fields(AugmentDraws)
            if not np.array_equal(getattr(every, field.name), getattr(other, field.name))
        }
        assert changed == changed_by[setting]


def test_masked_and_padded_values_are_normalised_zeros() -> None:
    augment = AugmentSettings(frequency_mask=6, time_mask=10)
    draws = draw(augment)
    draws = dataclasses.replace(draws, mixup_lambda=np.ones(8))
    fbanks, num_frames = stack([clip[:20] for clip in raw_batch()])
    out = in_a_batch(fbanks, num_frames, draws, **AUDIOSET)
    fill = torch.tensor(0.467).expand(NUM_MELS)
    torch.testing.assert_close(out[0, -1], fill, atol=5e-4, rtol=0)
    row = int(np.argmax(draws.time_width))
    assert draws.time_width[row] > 0
    torch.testing.assert_close(out[row, draws.time_start[row]], fill, atol=5e-4, rtol=0)


def test_normalised_training_data_has_mean_0_and_std_one_half() -> None:
    x = torch.randn(50, NUM_FRAMES, NUM_MELS, generator=torch.Generator().manual_seed(0)) * 5 - 7
    out = normalise(x, float(x.mean()), float(x.std()))
    assert float(out.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(out.std()) == pytest.approx(0.5, abs=1e-5)


def test_mask_interval_equals_torchaudio_on_the_same_random_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    for max_width, size in ((48, 128), (192, 1024), (24, 128), (96, 512), (48, 48)):
        numbers = rng.random((200, 2))
        start, width = mask_interval(*numbers.T, max_width=max_width, size=size)
        # torchaudio draws the width first, then the start.
        drawn = iter(torch.from_numpy(numbers).flatten().tensor_split(numbers.size))
        monkeypatch.setattr(torch, "rand", lambda _, drawn=drawn: next(drawn))
        for row in range(len(numbers)):
            masked = torchaudio.functional.mask_along_axis(torch.ones(1, size), max_width, 0.0, 1)
            expected = torch.ones(size)
            expected[start[row] : start[row] + width[row]] = 0
            assert torch.equal(masked[0], expected)


def test_masks_are_drawn_over_the_published_ranges() -> None:
    draws = draw(AugmentSettings(), num=20_000, num_mels=128, num_frames=1024)
    for start, width, max_width, size in (
        (draws.frequency_start, draws.frequency_width, 48, 128),
        (draws.time_start, draws.time_width, 192, 1024),
    ):
        assert start.min() == 0
        assert (start + width).max() < size
        assert chisquare(np.bincount(width, minlength=max_width)).pvalue > 0.001
        assert len(np.bincount(width)) == max_width
        assert kstest(start / (size - width), "uniform").pvalue > 1e-6
    assert abs(np.corrcoef(draws.frequency_width, draws.time_width)[0, 1]) < 0.03
    assert abs(np.corrcoef(draws.time_start, draws.time_width)[0, 1] + 0.11) < 0.05


def test_masks_of_full_and_zero_width_are_possible() -> None:
    draws = rows_of(draw(), slice(0, 2))
    x = raw_batch(2)
    masked = mask_(
        x,
        dataclasses.replace(
            draws,
            frequency_start=np.array([0, 3]),
            frequency_width=np.array([NUM_MELS, 0]),
            time_start=np.array([0, 5]),
            time_width=np.array([0, 2]),
        ),
    )
    assert masked is x
    assert not x[0].any()
    assert not x[1, 5:7].any()
    assert x[1, [4, 7]].all()


def test_mixup_lambda_is_beta_distributed_for_its_share_of_the_samples() -> None:
    draws = draw(AugmentSettings(mixup_share=0.3, time_mask=0), num=20_000, num_mels=128)
    mixed = needs_partner(draws)
    lambdas = draws.mixup_lambda[mixed]
    assert mixed.mean() == pytest.approx(0.3, abs=0.015)
    assert (draws.mixup_lambda[~mixed] == 1.0).all()
    assert lambdas.mean() == pytest.approx(0.5, abs=0.01)
    assert lambdas.var() == pytest.approx(1 / (4 * 21), rel=0.06)
    assert kstest(lambdas, beta(10, 10).cdf).pvalue > 0.001


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_mixup_share_0_and_1_mix_none_and_all(share: float) -> None:
    draws = draw(dataclasses.replace(SMALL, mixup_share=share), num=500)
    assert needs_partner(draws).mean() == share


def test_noise_and_roll_are_drawn_over_the_published_ranges() -> None:
    draws = draw(num=10_000)
    assert kstest(draws.noise_scale * 10, "uniform").pvalue > 0.001
    assert chisquare(np.bincount(draws.roll + 10, minlength=20)).pvalue > 0.001
    assert (draws.roll.min(), draws.roll.max()) == (-10, 9)


def test_draws_of_a_sample_are_independent_of_each_other() -> None:
    draws = draw(num=5000)
    drawn = [
        needs_partner(draws),
        np.where(needs_partner(draws), draws.mixup_lambda, 0.5),
        draws.frequency_width,
        draws.frequency_start / (NUM_MELS - draws.frequency_width),
        draws.time_width,
        draws.time_start / (NUM_FRAMES - draws.time_width),
        draws.noise_scale,
        draws.noise_seed / 2**64,
        draws.roll,
    ]
    correlation = np.corrcoef(np.array(drawn, dtype=np.float64)) - np.eye(len(drawn))
    # Cutting down to whole mels and frames leaves starts and widths slightly correlated.
    assert np.abs(correlation).max() < 0.15
    noise = noisy(torch.zeros(8, NUM_FRAMES, NUM_MELS), rows_of(draws, slice(0, 8)))
    rest = np.corrcoef(noise.flatten(1).numpy()) - np.eye(8)
    assert np.abs(rest).max() < 0.25


def test_noise_is_uniform_up_to_one_scale_per_clip() -> None:
    draws = draw(dataclasses.replace(SMALL, roll_frames=0), num=4, num_mels=128, num_frames=128)
    noise = noisy(torch.zeros(4, 128, 128), draws)
    for row in range(4):
        scaled = noise[row].flatten() / draws.noise_scale[row]
        assert kstest(scaled.numpy(), "uniform").pvalue > 0.001
    assert len(torch.unique(noise)) > 4 * 128 * 128 * 0.99


def test_masks_move_with_the_roll() -> None:
    draws = dataclasses.replace(
        draw(
            AugmentSettings(frequency_mask=0, time_mask=10, mixup_share=0.0, roll_frames=10), num=1
        ),
        time_start=np.array([2]),
        time_width=np.array([3]),
        roll=np.array([-4]),
    )
    out = in_a_batch(torch.ones(1, NUM_FRAMES, NUM_MELS), full(1), draws, mean=0.0, std=0.5)
    is_masked = (out[0] == 0).all(dim=1)
    assert is_masked.nonzero().flatten().tolist() == [0, NUM_FRAMES - 2, NUM_FRAMES - 1]


def mix(clip: Tensor, partner: Tensor, share: float) -> Tensor:
    """For two clips, without frames past the end of the first."""
    draws = dataclasses.replace(draw(num=1), mixup_lambda=np.array([share]))
    return mix_log_mel(*stack([clip, partner]), draws)[0, : len(clip)]


@pytest.mark.parametrize("num_partner", [3, 10, 17])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_mix_adds_powers_over_the_clips_length(num_partner: int, share: float) -> None:
    clip, partner = raw_batch(2) * 3
    expected = mixed(clip[:10], partner[:num_partner], share).float()
    torch.testing.assert_close(
        mix(clip[:10], partner[:num_partner], share), expected, atol=1e-5, rtol=0
    )


def test_only_drawn_clips_are_mixed() -> None:
    draws = draw(num=20)
    rows = np.flatnonzero(needs_partner(draws))
    clips, partners = raw_batch(20), raw_batch(len(rows), seed=1)
    out = mix_log_mel(torch.cat([clips, partners]), full(20 + len(rows)), draws)
    expected = clips.clone()
    for partner, row in zip(partners, rows, strict=True):
        expected[row] = mixed(clips[row], partner, draws.mixup_lambda[row])
    assert 4 < len(rows) < 16
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def test_mix_equals_mixed_waveforms_without_bias() -> None:
    generator = torch.Generator().manual_seed(0)
    waves = torch.randn(2, 4_000, generator=generator) * torch.tensor([[0.1], [0.02]])

    def fbank(wave: Tensor) -> Tensor:
        features: Tensor = torchaudio.compliance.kaldi.fbank(
            wave[None], htk_compat=True, window_type="hanning", num_mel_bins=NUM_MELS
        )
        return features

    a, b, truth = fbank(waves[0]), fbank(waves[1]), fbank(0.4 * waves[0] + 0.6 * waves[1])
    error, linear_error = mix(a, b, 0.4) - truth, 0.4 * a + 0.6 * b - truth
    assert abs(float(error.mean())) < 0.1
    assert float(error.square().mean()) < 0.25 * float(linear_error.square().mean())


def test_silence_stays_at_the_floor() -> None:
    silence = torch.full((5, NUM_MELS), LOG_MEL_FLOOR)
    torch.testing.assert_close(mix(silence, silence[:2], 0.5), silence)


def test_float16_clips_are_mixed_in_float32() -> None:
    clip, partner = raw_batch(2).half()
    out = mix(clip, partner, 0.4)
    assert out.dtype == torch.float32
    assert torch.equal(out, mix(clip.float(), partner.float(), 0.4))


def test_full_share_of_the_partner_gives_the_partner() -> None:
    clip, partner = raw_batch(2)
    floor = torch.tensor(LOG_MEL_FLOOR)
    torch.testing.assert_close(mix(clip, partner, 0.0), partner.maximum(floor))
    assert (mix(clip, partner[:5], 0.0)[5:] == floor).all()


def test_mixed_targets_add_where_both_have_the_label() -> None:
    draws = dataclasses.replace(draw(num=2), mixup_lambda=np.array([0.7, 1.0]))
    own, others = torch.tensor([[1.0, 1.0, 0.0]] * 2), torch.tensor([[0.0, 1.0, 0.0]] * 2)
    targets = mix_targets(own, others, draws)
    torch.testing.assert_close(targets, torch.tensor([[0.7, 1.0, 0.0], [1.0, 1.0, 0.0]]))


@given(st.integers(1, 40), st.integers(1, 40))
def test_all_crops_of_a_clip_are_equally_likely(num_frames: int, num_kept: int) -> None:
    num_places = max(1, num_frames - num_kept + 1)
    crops = (np.arange(3 * num_places) + 0.5) / (3 * num_places)
    first = first_frame(crops, np.full(len(crops), num_frames), num_kept)
    assert first.tolist() == np.repeat(np.arange(num_places), 3).tolist()
    largest = first_frame(np.array([1 - 2.0**-53]), np.array([num_frames]), num_kept)
    assert largest.tolist() == [num_places - 1]


def test_crops_are_independent_of_other_draws() -> None:
    fixed, random = draw(num=5000), draw(dataclasses.replace(SMALL, crop="random"), num=5000)
    crops = {"crop", "partner_crop"}
    for field in dataclasses.fields(AugmentDraws):
        same = np.array_equal(getattr(fixed, field.name), getattr(random, field.name))
        assert same == (field.name not in crops)
    assert not fixed.crop.any()
    assert not fixed.partner_crop.any()
    for crop in (random.crop, random.partner_crop):
        assert kstest(crop, "uniform").pvalue > 0.001
    drawn = [random.crop, random.partner_crop, random.mixup_lambda, random.noise_seed / 2**64]
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.06


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frequency_mask", -1),
        ("time_mask", -1),
        ("mixup_share", 1.5),
        ("mixup_share", math.nan),
        ("mixup_alpha", 0.0),
        ("mixup_alpha", math.inf),
        ("roll_frames", -1),
        ("crop", "last"),
    ],
)
def test_augmentation_settings_out_of_range_are_refused(field: str, value: Any) -> None:
    with refused(field, f"got {value!r}", type=SettingValueError):
        dataclasses.replace(SMALL, **{field: value})


@pytest.mark.parametrize(
    ("size", "field", "limit"),
    [({"num_mels": 5}, "frequency_mask", "5 mels"), ({"num_frames": 9}, "time_mask", "9 frames")],
)
def test_mask_larger_than_the_input_is_refused(
    size: dict[str, Any], field: str, limit: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: .*\b{limit}"):
        draw(**size)


def test_batch_size_other_than_that_of_the_draws_is_refused() -> None:
    for function in (mask_, noisy):
        with pytest.raises(ValueError, match=r"^x: .*\[7, 24, 16\]"):
            function(raw_batch(7), draw())


def test_missing_or_surplus_partners_are_refused() -> None:
    draws = draw(dataclasses.replace(SMALL, mixup_share=1.0))
    for num in (8, 17):
        with pytest.raises(ValueError, match=rf"^x: .*\[{num}, 24, 16\]"):
            mix_log_mel(raw_batch(num), full(num), draws)
