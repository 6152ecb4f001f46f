import json
import random

import pytest

from kdscale.documents import DAMAGE, parse_object, read_object, write_object

TABLE = {"seed": 3, "top1_accuracy": 0.71, "classes": ["chat noir", "Hündin"], "best": None}


def test_what_was_written_is_read(tmp_path):
    write_object(tmp_path / "a.json", TABLE)
    assert read_object(tmp_path / "a.json", root=tmp_path) == TABLE


def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path):
    write_object(tmp_path / "a.json", TABLE)
    data = (tmp_path / "a.json").read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found = parse_object(bytes(flipped))
        except DAMAGE:
            continue
        # Only white space and, since a file without a checksum is accepted, the name of its key.
        assert found == TABLE or found.keys() - TABLE.keys(), (bit, found)


def test_a_document_of_before_without_a_checksum_is_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(TABLE))
    assert read_object(tmp_path / "a.json") == TABLE


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"3", b"nul", b"\xff\xfe", b'{"a": NaN, "checksum": "0"}', b"[" * 10**6]
)
def test_other_content_raises_what_callers_expect(data):
    with pytest.raises(DAMAGE):
        parse_object(data)


def test_random_bytes_raise_nothing_else():
    generator = random.Random(0)
    for _ in range(500):
        with pytest.raises(DAMAGE):
            parse_object(generator.randbytes(generator.randrange(60)))
