"""lab.attacks.low_frequency: a Gaussian against a slow one, 0..51 grey levels, few high frequencies."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clipguard.errors import ClipguardError
from clipguard.lab.attacks import fit_attack
from clipguard.lab.attacks.low_frequency import scaled, smoothed
from clipguard.seeds import Seed
from tiny_attacks import TRAINED, coloured_set


@pytest.fixture(scope="module")
def attack():
    return fit_attack(replace(TRAINED["lf"], epochs=10, lr=0.05, steps=20), coloured_set(), Seed(3))


def slow_gaussian(plane, sigma):
    """Return the plane under a Gaussian that ends at 2.5 sigma, zeros around it; a pixel at a time."""
    h, w = plane.shape
    reach = int(2.5 * sigma + 0.5)
    weights = {d: np.exp(-0.5 * (d / sigma) ** 2) for d in range(-reach, reach + 1)}
    total = sum(weights.values()) ** 2
    out = np.zeros((h, w))
    for i in range(h):
        for j in range(w):
            for di, one in weights.items():
                for dj, other in weights.items():
                    if 0 <= i + di < h and 0 <= j + dj < w:
                        out[i, j] += one * other * plane[i + di, j + dj]
    return out / total


def test_smoothing_is_a_gaussian_of_the_shorter_side_in_each_plane():
    pattern = torch.randn((1, 3, 8, 11), generator=Seed(0).torch())
    smooth_planes = smoothed(pattern, 0.2)[0]
    for plane, smooth in zip(pattern[0], smooth_planes, strict=True):
        assert np.abs(smooth.numpy() - slow_gaussian(plane.numpy(), 1.6)).max() < 1e-5


def test_scaling_moves_and_stretches_all_planes_together():
    pattern = torch.tensor([-2.0, 0.0, 2.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert scaled(pattern, 0.2)[0, :, 0, 0].tolist() == pytest.approx([0.0, 0.1, 0.2])


def test_the_perturbation_reaches_from_nothing_to_51_grey_levels_and_is_added(attack):
    assert float(attack.pattern.min()) == 0
    assert float(attack.pattern.max()) == pytest.approx(51, abs=1e-3)
    data = coloured_set(seed=5)
    change = attack.trigger(data.images).astype(int) - data.images
    assert np.array_equal(change, np.broadcast_to(np.rint(attack.pattern), change.shape))
    changed, truth = attack.poison(data, Seed(0))
    assert np.array_equal(changed.images[truth.poisoned], attack.trigger(data.images)[truth.poisoned])


def test_images_stop_at_white(attack):
    white = np.full((2, 16, 16, 3), 255, dtype=np.uint8)
    assert np.array_equal(attack.trigger(white), white)


def test_hardly_anything_of_the_perturbation_is_of_high_frequency(attack):
    spectrum = np.abs(np.fft.fft2(attack.pattern - attack.pattern.mean((0, 1)), axes=(0, 1))) ** 2
    high = np.abs(np.fft.fftfreq(16)) > 0.25
    assert spectrum[high].sum() + spectrum[:, high].sum() < 0.02 * spectrum.sum()


def test_another_amplitude_is_kept():
    strong = fit_attack(replace(TRAINED["lf"], amplitude=90.0), coloured_set(), Seed(0))
    assert float(strong.pattern.max()) == pytest.approx(90, abs=1e-3)


def test_a_pattern_without_any_contrast_is_refused_instead_of_kept(monkeypatch, tmp_path):
    monkeypatch.setattr("clipguard.lab.attacks.low_frequency.smoothed", lambda pattern, blur: 0 * pattern)
    with pytest.raises(ClipguardError, match=r"diverged \(NaN or Inf in pattern\)"):
        fit_attack(TRAINED["lf"], coloured_set(), Seed(0), tmp_path)
    assert not list(tmp_path.iterdir())
