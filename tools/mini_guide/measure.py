"""Zero-shot accuracy of a guide: `python -m mini_guide.measure GUIDE SET.parquet [ROWS]`, from `tools`."""

import sys
import time
from pathlib import Path

from clipguard.clip.zero_shot import guide_from_name
from mini_guide.make import read_parquet


def main() -> None:
    """Print accuracy, chance and speed on one set."""
    guide = guide_from_name(sys.argv[1])
    images, labels, names = read_parquet(Path(sys.argv[2]), int((*sys.argv[3:], 3000)[0]))
    model = guide.clip
    start = time.perf_counter()
    embedded = model.embed_images(images)
    seconds = time.perf_counter() - start
    right = (guide.logits(embedded, names).logits[:].argmax(1) == labels).mean()
    print(
        f"{guide.name}: accuracy {right:.3f}, chance {1 / len(names):.3f}, "
        f"n {len(labels)}, {len(labels) / seconds:.0f} images/s"
    )


if __name__ == "__main__":
    main()
