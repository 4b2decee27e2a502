"""The ten kinds of sound differ, and every sample rate shows it."""

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.manifest.synthetic import SAMPLE_RATES_HZ
from pipeline.manifest.synthetic_sounds import LABELS, synthesise


def spectrogram(sound: NDArray[np.float64], sample_rate_hz: int) -> NDArray[np.float64]:
    """Log power `[T, 36]` in 10 ms frames, in bands of 100 Hz up to 3.6 kHz."""
    frame = sample_rate_hz // 100
    frames = sound[: len(sound) // frame * frame].reshape(-1, frame)
    power = np.abs(np.fft.rfft(frames * np.hanning(frame))) ** 2 / frame**2
    return np.log(power[:, :36] + 1e-5)


def features(label: str, number: int) -> NDArray[np.float64]:
    """What a glance at the spectrogram of one sound shows: levels in thirds of time, changes."""
    rng = np.random.default_rng([LABELS.index(label), number])
    rate = SAMPLE_RATES_HZ[number % len(SAMPLE_RATES_HZ)]
    bands = spectrogram(synthesise(label, int(rate * rng.uniform(0.6, 2.5)), rate, rng), rate)
    levels = [
        third.reshape(len(third), 9, 4).mean(axis=(0, 2)) for third in np.array_split(bands, 3)
    ]
    changes = np.abs(np.diff(bands, axis=0)).mean(axis=0).reshape(9, 4).mean(axis=1)
    return np.concatenate([*levels, bands.std(axis=0).reshape(9, 4).mean(axis=1), 3 * changes])


def test_nearest_centroid_separates_the_classes() -> None:
    centroids = {label: np.mean([features(label, n) for n in range(14)], 0) for label in LABELS}
    correct: Counter[str] = Counter()
    for label in LABELS:
        for number in range(14, 28):
            seen = features(label, number)
            nearest = min(LABELS, key=lambda other: float(np.linalg.norm(seen - centroids[other])))
            correct[label] += nearest == label
    assert correct.total() >= 0.85 * 14 * len(LABELS)
    assert min(correct[label] for label in LABELS) >= 8


@pytest.mark.parametrize("label", LABELS)
def test_sounds_stay_below_the_lowest_nyquist_frequency(label: str) -> None:
    for number, rate in enumerate(SAMPLE_RATES_HZ):
        sound = synthesise(label, rate, rate, np.random.default_rng(number))
        power = np.abs(np.fft.rfft(sound)) ** 2
        frequency_hz = np.fft.rfftfreq(rate, 1 / rate)
        assert power[frequency_hz > 3700].sum() < 0.03 * power.sum()
        assert np.sqrt(np.mean(sound**2)) > 0.1
        assert np.abs(sound).max() < 10
