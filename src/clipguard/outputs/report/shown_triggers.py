"""The reconstructed triggers as the page shows them: alone, and on clean samples."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from clipguard.outputs.report.pictures import Picture, eight_bits, picture, thumbnails, trigger_alone
from clipguard.runs import RunFolder
from clipguard.triggers.affine import AffineTrigger, read_triggers
from clipguard.types import Partition

TRIGGERS: Final = 8
"""How many triggers are shown."""

EXAMPLES: Final = 6
"""How many clean samples are shown with each trigger."""

_EXAMPLE_BYTES: Final = 300_000


def shown_triggers(least: Sequence[Picture], partition: Partition, folder: RunFolder) -> list[dict[str, Any]]:
    """Return the first triggers alone and on the least suspicious clean samples, as JSON values.

    `scale` and `shift` are the trigger itself, for the script that puts it on pictures or takes it off.
    """
    inversion = folder.finished("trigger_inversion")
    if inversion is None or not least:
        return []
    plain = np.stack(least)
    numbered = [
        (number, trigger)
        for number, trigger in enumerate(read_triggers(inversion.path), 1)
        # A run that was stopped may hold images of another size by now.
        if trigger.scale.shape == plain.shape[1:]
    ][:TRIGGERS]
    both = [np.concatenate([plain, trigger.apply(plain)]) for _, trigger in numbered]
    uris = thumbnails([one for images in both for one in images], _EXAMPLE_BYTES)
    described = []
    for place, (number, trigger) in enumerate(numbered):
        some = uris[2 * len(plain) * place :]
        described.append(
            {
                "number": number,
                "label": trigger.label,
                "flagged": int((partition.trigger == number - 1).sum()),
                "change": float(np.abs(both[place][len(plain) :].astype(np.int16) - plain).mean()),
                "examples": [
                    {"without": some[i] or "", "with": some[len(plain) + i] or ""} for i in range(len(plain))
                ],
                **_alone(trigger),
            }
        )
    return described


def _alone(trigger: AffineTrigger) -> dict[str, Any]:
    return {
        "alone": picture(trigger_alone(trigger)),
        "scale": eight_bits(trigger.scale),
        "shift": eight_bits(trigger.shift),
    }
