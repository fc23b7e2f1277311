import csv
import os
import unicodedata

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from rich.console import Console

from metarun.errors import shown
from metarun.report.figure import NAME_LENGTH, Lettering
from metarun.report.predictions import Predictions, draw_predictions, picture, table, write_csv


def predictions(way=3, shots=(2, 1, 4), num_query=5, names=None, files=None, channels=1):
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(way), shots)
    probabilities = random.dirichlet(np.ones(way), num_query)
    return Predictions(
        names or [f"class {c}" for c in range(way)],
        random.random((len(labels), 6, 6, channels)),
        labels,
        files or [f"{k}.png" for k in range(num_query)],
        random.random((num_query, 6, 6, channels)),
        probabilities,
    )


def words_of(figure):
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("channels", [1, 3])
def test_every_picture_is_drawn_with_its_class(channels):
    found = predictions(channels=channels)
    figure = draw_predictions(found)
    assert len(figure.axes[0].images) == 7 + 5
    drawn = [np.asarray(image.get_array()).reshape(6, 6, channels) for image in figure.axes[0].images]
    for image in [*found.support_x, *found.query_x]:
        assert any(np.array_equal(image, one) for one in drawn)
    words = words_of(figure)
    assert words[:4] == ["Support", "class 0", "class 1", "class 2"] and "Queries" in words
    for file, name, best in zip(found.files, found.predicted, found.probabilities.max(1), strict=True):
        at = words.index(file)
        assert words[at : at + 3] == [file, name, f"{best:.0%}"]
    bars = [bar.get_width() for bar in figure.axes[0].patches if isinstance(bar, Rectangle)]
    np.testing.assert_allclose(np.divide(bars[1::2], bars[::2]), found.probabilities.max(1))


def test_of_many_the_first_are_drawn_and_that_is_said():
    found = predictions(way=25, shots=12, num_query=50)
    figure = draw_predictions(found)
    assert len(figure.axes[0].images) == 20 * 8 + 40
    words = words_of(figure)
    assert words.count("+ 4") == 20
    assert "Support: the first 20 of 25 classes" in words and "Queries: the first 40 of 50 queries" in words


def test_names_may_be_anything(tmp_path):
    names, files = ["$a_1$", 'b, "c"\n', "a very long name of a class, which is cut"], ["[red]", "a\n", *"xyz"]
    found = predictions(names=names, files=files)
    write_csv(found, tmp_path / "new" / "a.csv")
    with (tmp_path / "new" / "a.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "predicted", *names]
    assert [row[:2] for row in rows] == [list(pair) for pair in zip(files, found.predicted, strict=True)]
    np.testing.assert_array_equal(np.array([row[2:] for row in rows], float), found.probabilities)
    picture(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    console = Console(width=100)
    with console.capture() as printed:
        console.print(table(found))
    assert "[red]" in printed.get()


def test_of_many_queries_the_table_has_the_first():
    console = Console(width=100)
    with console.capture() as printed:
        console.print(table(predictions(num_query=45)))
    lines = printed.get().splitlines()
    assert lines[0].split() == ["query", "predicted", "probability"]
    assert lines[40].startswith("39.png") and "and 5 more" in lines[41]


GBK = os.fsdecode("狗".encode("gbk"))


def test_names_of_any_bytes_and_characters_pass_every_writer(tmp_path):
    names = [GBK, "狗\u202e", "\x1b[31mred\x07"]
    found = predictions(names=names, files=["กา.png", f"{GBK}.png", "a\r.png", "\U0001f415.png", "x"])
    write_csv(found, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        header, *rows = csv.reader(file)
    assert header[2:] == names and [row[:2] for row in rows] == [
        list(p) for p in zip(found.files, found.predicted, strict=True)
    ]
    picture(found, tmp_path / "a.png")  # a box in it would be a warning, and so an error
    console = Console(width=100)
    with console.capture() as printed:
        console.print(table(found))
    assert r"\xb9\xb7.png" in printed.get() and "\x1b[31m" not in printed.get() and printed.get().encode()
    words = words_of(draw_predictions(found))
    assert {r"\xb9\xb7", r"\x1b[31mred\x07", r"a\r.png"} <= {*words}


def test_what_does_not_show_is_escaped_and_all_else_is_as_it_is():
    assert shown(f"Größe 猫 {GBK}\n\u2028\u200d") == r"Größe 猫 \xb9\xb7\n\u2028\u200d"


def test_a_character_that_one_font_lacks_is_drawn_by_another_and_one_that_all_lack_as_its_code():
    # Of mathematics' script letters, in the fonts that matplotlib brings along; and of those in no font at all.
    letters = Lettering(["\U0001d49c", "\U000e0fff x", "cafe\u0301 $1$"])
    assert letters.families[0] == "sans-serif" and len(letters.families) == 2
    assert letters.short("\U0001d49c") == "\U0001d49c" and letters.short("\U000e0fff x") == r"\U000e0fff x"
    assert letters.short("cafe\u0301 $1$") == unicodedata.normalize(
        "NFC", r"cafe\u0301 \$1\$".replace(r"\u0301", "\u0301")
    )
    assert Lettering(["Ж é"]).families == ["sans-serif"]
    for name in ("a" * 40, "\U000e0fff" * 9):
        cut = Lettering([name]).short(name)
        assert cut.startswith("…") and len(cut) <= NAME_LENGTH and cut[1:] in name * 2 + r"\U000e0fff" * 9
