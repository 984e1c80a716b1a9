"""Maps of a long sequence fit into little memory."""

import pytest

from tests.focus.maps.cost import MASKS, programs, temporaries


@pytest.mark.slow
@pytest.mark.parametrize("name", MASKS)
def test_temporaries_of_three_maps_of_a_long_sequence(name: str) -> None:
    # A T-by-S array of 8 heads would be 32 GiB.
    assert temporaries(programs(32768, MASKS[name]).maps) < 400
