"""What the method does is tested with the defaults, the precision of trainings included."""

import pytest

from clipguard.compute.device import PRECISION_VARIABLE


@pytest.fixture(autouse=True, scope="package")
def default_precision():
    """Let the processor train as it does for users."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(PRECISION_VARIABLE, raising=False)
        yield
