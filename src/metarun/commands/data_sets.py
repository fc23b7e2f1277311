"""What `metarun-data` says and does."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from metarun.data.cache import MANIFEST, cache_dir, entries, verified
from metarun.data.class_bank import SplitBank
from metarun.errors import DataError
from metarun.report.contact_sheet import blank_in_words, contact_sheet


def list_all(files: Sequence[Path]) -> None:
    """Prints the data sets, one for each of some YAML files, whose first line says what it is; and the cache."""
    console = Console()
    table = Table("dataset=", "what it is", box=None, pad_edge=False)
    for file in sorted(files, key=lambda file: file.stem):
        first, _, _ = file.read_text(encoding="utf-8", errors="replace").partition("\n")
        table.add_row(file.stem, first.lstrip("# "))
    console.print(table)
    found = entries()
    console.print(f"\nPrepared, in {cache_dir()}:" if found else f"\nNothing is prepared in {cache_dir()}.")
    for entry in found:
        size = sum(path.stat().st_size for path in entry.iterdir())
        console.print(f"  {entry.name}  {size / 1e6:,.0f} MB", highlight=False, soft_wrap=True)


def describe(loaded: SplitBank, seconds: float) -> None:
    """Prints what a prepared data set has."""
    console = Console(highlight=False, soft_wrap=True)
    one, classes, examples = loaded.nouns
    size = "x".join(map(str, loaded.bank.images.shape[1:]))
    console.print(f"{loaded.protocol['name']}: {size}, ready in {seconds:.1f} s")
    for split, its in loaded.classes.items():
        counts = [int(loaded.bank.count[c]) for c in its]
        each = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        console.print(f"  {split:5}  {len(its):,} {classes}, {sum(counts):,} {examples}, {each} a {one}")
    console.print(f"  sha256 {loaded.protocol['sha256']}")
    if said := blank_in_words(loaded):
        console.print(said, markup=False)


def verify() -> None:
    """Reads every entry of the cache and says which are whole.

    Raises:
      DataError: one is not.
    """
    console = Console(highlight=False, soft_wrap=True)
    broken = []
    for entry in entries():
        try:
            verified(entry)
            kind = json.loads((entry / MANIFEST).read_bytes())["kind"]
            console.print(f"whole   {entry.name}  ({kind})")
        except DataError as error:
            broken.append(entry)
            console.print(f"broken  {entry.name}: {error}")
    if broken:
        raise DataError(f"{len(broken)} of {len(entries())} entries in {cache_dir()} are broken, see above.")
    console.print(f"All {len(entries())} entries in {cache_dir()} are whole.")


def show(loaded: SplitBank, output: Path) -> None:
    """Draws some classes of each split into `output`."""
    contact_sheet(loaded, output)
    Console(highlight=False, soft_wrap=True).print(f"Some classes of each split: {output}")
