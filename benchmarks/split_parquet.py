"""Copy a local data set of parquet files in parts below a size, images byte for byte.

    python benchmarks/split_parquet.py SOURCE --out data/tiny-imagenet --mib 40

For machines that take only so much at a time. The parts of a split are named as those of the
Hugging Face hub, `train-00000-of-00004.parquet`, so their folder is a data set as the original is.
"""

import argparse
from pathlib import Path

from pyarrow import parquet


def split(source: Path, out: Path, most_bytes: int) -> list[Path]:
    """Write each file of a folder in parts of whole row groups; return the parts."""
    written = []
    for path in sorted(source.glob("*.parquet")):
        file = parquet.ParquetFile(path)
        parts = _parts(file, most_bytes)
        for number, groups in enumerate(parts):
            name = path.name.partition("-")[0]
            part = out / f"{name}-{number:05d}-of-{len(parts):05d}.parquet"
            codec = file.metadata.row_group(0).column(0).compression
            with parquet.ParquetWriter(part, file.schema_arrow, compression=codec) as writer:
                for group in groups:
                    writer.write_table(file.read_row_group(group))
            written.append(part)
    return written


def _parts(file: parquet.ParquetFile, most_bytes: int) -> list[list[int]]:
    """Return the row groups of each part, as equal in size as whole groups allow."""
    sizes = [_compressed_bytes(file, group) for group in range(file.num_row_groups)]
    count = -(-sum(sizes) // most_bytes)
    parts: list[list[int]] = [[] for _ in range(count)]
    before = 0
    for group, size in enumerate(sizes):
        parts[min(count - 1, before * count // sum(sizes))].append(group)
        before += size
    return [part for part in parts if part]


def _compressed_bytes(file: parquet.ParquetFile, group: int) -> int:
    columns = file.metadata.row_group(group)
    return sum(columns.column(n).total_compressed_size for n in range(columns.num_columns))


def main() -> None:
    """Write the parts, and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mib", type=float, default=40.0, help="largest size of a part, about")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for part in split(arguments.source, arguments.out, int(arguments.mib * (1 << 20))):
        print(f"{part}: {part.stat().st_size / (1 << 20):.1f} MiB")


if __name__ == "__main__":
    main()
