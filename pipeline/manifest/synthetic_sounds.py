"""Ten kinds of sound, the classes of the built-in data set.

In: a class, a length, a sample rate and a random generator. Out: a sound, the same for the same
generator. The classes differ below `HIGHEST_HZ`, so every sample rate preserves the difference.

Shapes: N samples.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.float64]

# The features that distinguish sounds stay below this, so that an 8 kHz file has them, too.
HIGHEST_HZ = 3400.0


def _time_s(num_samples: int, sample_rate_hz: int) -> Signal:
    return np.arange(num_samples) / sample_rate_hz


def _oscillator(
    frequency_hz: Signal, sample_rate_hz: int, amplitudes: Sequence[float] = (1.0,)
) -> Signal:
    """Harmonics 1, 2, ... of a gliding pitch `[N]`, each faded out as it nears `HIGHEST_HZ`."""
    turn = np.exp(2j * np.pi * np.cumsum(frequency_hz) / sample_rate_hz)
    partial = np.ones_like(turn)
    tone = np.zeros_like(frequency_hz)
    for number, amplitude in enumerate(amplitudes, start=1):
        if number * frequency_hz.min() >= HIGHEST_HZ:
            break
        # Harmonic k is the fundamental's rotation to the power k: cheaper than k sines.
        partial *= turn
        fade = np.clip((HIGHEST_HZ - number * frequency_hz) / 300, 0.0, 1.0)
        tone += amplitude * fade * partial.imag
    return tone


def _band_noise(
    num_samples: int, sample_rate_hz: int, rng: np.random.Generator, low_hz: float, high_hz: float
) -> Signal:
    """White noise between two frequencies, `[N]`."""
    # Cut from a power of two: the transform of a prime length takes several times longer.
    length = 1 << (num_samples - 1).bit_length()
    frequency_hz = np.fft.rfftfreq(length, 1 / sample_rate_hz)
    inside = (frequency_hz >= low_hz) & (frequency_hz <= high_hz)
    spectrum = np.zeros(len(frequency_hz), dtype=np.complex128)
    spectrum[inside] = rng.standard_normal((inside.sum(), 2)) @ (1.0, 1.0j)
    return np.fft.irfft(spectrum, length)[:num_samples]


def _sweep(start_hz: float, end_hz: float, num_samples: int, sample_rate_hz: int) -> Signal:
    return _oscillator(np.geomspace(start_hz, end_hz, num_samples), sample_rate_hz, (1.0, 0.3))


def _rising_chirp(num_samples: int, sample_rate_hz: int, rng: np.random.Generator) -> Signal:
    return _sweep(rng.uniform(250, 500), rng.uniform(1800, 3200), num_samples, sample_rate_hz)


def _falling_chirp(num_samples: int, sample_rate_hz: int, rng: np.random.Generator) -> Signal:
    return _sweep(rng.uniform(1800, 3200), rng.uniform(250, 500), num_samples, sample_rate_hz)


def _harmonic_tone(num_samples: int, sample_rate_hz: int, rng: np.random.Generator) -> Signal:
    pitch_hz = np.full(num_samples, rng.uniform(140, 350))
    return _oscillator(pitch_hz, sample_rate_hz, [number**-0.7 for number in range(1, 25)])


def _vibrato(num_samples: int, sample_rate_hz: int, rng: np.random.Generator) -> Signal:
    swing = np.sin(2 * np.pi * rng.uniform(4, 7) * _time_s(num_samples, sample_rate_hz))
    pitch_hz = rng.uniform(500, 1000) * (1 + rng.uniform(0.08, 0.14) * swing)
    return _oscillator(pitch_hz, sample_rate_hz, (1.0, 0.5, 0.25))


def _tremolo(num_samples: int, sample_rate_hz: int, rng: np.random.Generator) -> Signal:
    swing = np.sin(2 * np.pi * rng.uniform(5, 9) * _time_s(num_samples, sample_rate_hz))
    pitch_hz = np.full(num_samples, rng.uniform(500, 1500))
    return (1 + 0.95 * swing) * _oscillator(pitch_hz, sample_rate_hz, (1.0, 0.3))


def _clicks(num_samples: int, sample_rate_hz: int, rng: np.random.Generator) -> Signal:
    since_click_s = np.mod(_time_s(num_samples, sample_rate_hz), 1 / rng.uniform(7, 14))
    noise = _band_noise(num_samples, sample_rate_hz, rng, 400, HIGHEST_HZ)
    return np.exp(-since_click_s / 0.003) * noise


def _noise_bursts(num_samples: int, sample_rate_hz: int, rng: np.random.Generator) -> Signal:
    cycle = np.mod(rng.uniform(2.5, 4) * _time_s(num_samples, sample_rate_hz), 1)
    noise = _band_noise(num_samples, sample_rate_hz, rng, 500, HIGHEST_HZ)
    return np.where(cycle < rng.uniform(0.35, 0.55), noise, 0.0)


def _rumble(num_samples: int, sample_rate_hz: int, rng: np.random.Generator) -> Signal:
    return _band_noise(num_samples, sample_rate_hz, rng, 40, rng.uniform(300, 600))


def _bell(num_samples: int, sample_rate_hz: int, rng: np.random.Generator) -> Signal:
    time_s = _time_s(num_samples, sample_rate_hz)
    pitch_hz, decay_s = rng.uniform(450, 850), rng.uniform(0.2, 0.4)
    sound = np.zeros(num_samples)
    # Hum, prime, tierce, quint, nominal and above: the uneven ratios of a church bell.
    for ratio in (0.5, 1.0, 1.19, 1.5, 2.0, 2.66, 3.76):
        partial = np.sin(2 * np.pi * ratio * pitch_hz * time_s + rng.uniform(0, 2 * np.pi))
        sound += ratio**-0.3 * np.exp(-time_s * max(ratio, 1.0) ** 0.5 / decay_s) * partial
    return sound


def _siren(num_samples: int, sample_rate_hz: int, rng: np.random.Generator) -> Signal:
    tone_number = np.floor(_time_s(num_samples, sample_rate_hz) / rng.uniform(0.18, 0.28))
    low_hz, ratio = rng.uniform(500, 800), rng.uniform(1.3, 1.5)
    pitch_hz = np.where(tone_number % 2 == 0, low_hz, low_hz * ratio)
    return _oscillator(pitch_hz, sample_rate_hz, (1.0, 0.5, 0.3))


_SOUNDS: dict[str, Callable[[int, int, np.random.Generator], Signal]] = {
    "harmonic tone": _harmonic_tone,
    "noise bursts": _noise_bursts,
    "rising chirp": _rising_chirp,
    "tremolo": _tremolo,
    "bell": _bell,
    "clicks": _clicks,
    "siren": _siren,
    "rumble": _rumble,
    "vibrato": _vibrato,
    "falling chirp": _falling_chirp,
}

LABELS = tuple(_SOUNDS)
"""The vocabulary, the most frequent class first."""


def synthesise(
    label: str, num_samples: int, sample_rate_hz: int, rng: np.random.Generator
) -> Signal:
    """A sound of class `label`, `[N]`, scaled so that its loudest 10 ms have RMS 1.

    The reference is the loudest moment, not the mean: otherwise a train of clicks would become many
    times louder than the tones mixed with it. Raises KeyError for a label not in `LABELS`.
    """
    sound = _SOUNDS[label](num_samples, sample_rate_hz, rng)
    fade = np.minimum(1.0, (np.arange(num_samples) + 1) / (0.005 * sample_rate_hz))
    sound = sound * fade * fade[::-1]
    frame = sample_rate_hz // 100
    frames = sound[: num_samples // frame * frame].reshape(-1, frame)
    return sound / float(np.sqrt(np.mean(frames**2, axis=1)).max())
