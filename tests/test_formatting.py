"""Words that people read."""

from kdscale.formatting import in_counting_order


def test_numbers_in_names_are_counted():
    names = ["cache-seed10", "cache-seed2", "alone-seed1", "00011", "00002", ""]
    found = sorted(names, key=in_counting_order)
    assert found == ["", "00002", "00011", "alone-seed1", "cache-seed2", "cache-seed10"]
