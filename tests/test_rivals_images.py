"""defenses.rivals.image_changes: against loops over single images, and against torchvision."""

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from clipguard.compute.inference import planes
from clipguard.defenses.rivals.image_changes import changed_inputs, cutout, rotated_and_shifted
from clipguard.models.spec import ModelSpec, build
from clipguard.seeds import Seed


def bright(n=64, h=12, w=9):
    return torch.randint(1, 256, (n, 3, h, w), dtype=torch.uint8, generator=Seed(0).torch())


def test_cutout_blackens_one_square_of_each_image_wherever_its_centre_lies():
    batch = bright()
    cut = cutout(batch, 3, Seed(1).torch())
    extents = set()
    for before, after in zip(batch, cut, strict=True):
        rows, columns = np.nonzero((after == 0).all(0).numpy())
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        extents.add((bottom - top, right - left))
        expected = before.clone()
        expected[:, top:bottom, left:right] = 0
        assert torch.equal(after, expected)
    # Whole squares, and those that the border cuts.
    assert (3, 3) in extents
    assert extents <= {(a, b) for a in (2, 3) for b in (2, 3)}
    assert len(extents) > 1


def test_what_is_rotated_and_shifted_is_what_torchvision_makes_of_each_image():
    batch = bright(n=16, h=12, w=12)
    angle, down, right = 2 * torch.rand(3, 16, 1, 1, generator=Seed(4).torch()) - 1
    moved = rotated_and_shifted(batch, 180.0, 0.2, Seed(4).torch())
    agreeing = []
    for number, image in enumerate(batch):
        shift = [round(0.2 * 12 * float(some[number])) for some in (right, down)]
        degrees = -180 * float(angle[number])
        turned = TF.rotate(image, -degrees, InterpolationMode.NEAREST)
        expected = TF.affine(turned, 0, shift, 1, [0.0])
        agreeing.append(float((moved[number] == expected).all(0).float().mean()))
    # Where a place lies halfway between two pixels, rounding may differ.
    assert np.mean(agreeing) > 0.97, agreeing


def test_nothing_is_moved_by_nothing_and_a_half_turn_turns():
    batch = bright(n=4)
    assert torch.equal(rotated_and_shifted(batch, 0.0, 0.0, Seed(0).torch()), batch)
    first = float((2 * torch.rand(3, 1, 1, 1, generator=Seed(5).torch()) - 1)[0])
    turned = rotated_and_shifted(batch[:1], 180 / first, 0.0, Seed(5).torch())
    assert torch.equal(turned, batch[:1].flip(2, 3))


def test_a_model_is_given_changed_images_inside_the_block_only():
    spec = ModelSpec.sized(architecture="shallow-4", num_classes=3, input_size=(12, 9))
    model, batch = build(spec, Seed(0)), planes(bright(2).permute(0, 2, 3, 1).numpy())
    with torch.inference_mode():
        plain, black = model(batch), model(torch.zeros_like(batch))
        with changed_inputs(model, torch.zeros_like):
            assert torch.equal(model(batch), black)
        assert torch.equal(model(batch), plain)
    assert not torch.equal(plain, black)
