"""What pictures of every kind become, held against values that are known; and that nothing but a picture is opened."""

import io
import struct
import subprocess
import threading
import time
import zlib

import numpy as np
import PIL.EpsImagePlugin
import pytest
from PIL import Image

from metarun.data import decoding
from metarun.data.decoding import PictureError, RangeError, checked_range, decode, in_words, opened
from metarun.data.image_folder import image_folder
from metarun.data.mini_imagenet import CLASSES, mini_imagenet
from metarun.data.omniglot import _ink
from metarun.data.pictures import in_folder, range_of, read_all
from metarun.errors import ConfigError, DataError

GRADIENT = np.tile(np.arange(64) * 4, (8, 1))  # 0 to 252
FULL = (GRADIENT * 257).astype(np.uint16)
# What a program would be run by: a page that Pillow takes for EPS.
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 105 105\n%%EndComments\nshowpage\n%%EOF\n"


def encoded(array, format="TIFF", **options):
    stream = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(stream, format, **options)
    return stream.getvalue()


def levels(data, range=None):
    return decode(data, *GRADIENT.shape, 1, range)[..., 0]


def big_endian(values):
    """A TIFF of 16 bits as a Macintosh writes it, by hand: Pillow's mode is I;16B."""
    entries = [(256, 64), (257, 8), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, 1024)]
    pixels = values.astype(">u2").tobytes()
    directory = struct.pack(">H", len(entries)) + b"".join(struct.pack(">HHIHH", t, 3, 1, v, 0) for t, v in entries)
    return b"MM\0*" + struct.pack(">I", 8 + len(pixels)) + pixels + directory + bytes(4)


def png(values, colour, transparent=b""):
    """A PNG of 16 bits a channel, which Pillow does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    hidden = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + header + hidden + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pgm(values, most):
    return b"P5 64 8 %d\n" % most + values.astype(">u2").tobytes()


@pytest.mark.parametrize(
    ("data", "range"),
    [
        (encoded(GRADIENT.astype(np.uint8), "PNG"), None),
        (encoded(GRADIENT.astype(np.uint8), "PNG"), (0, 9)),  # 8 bits keep their levels
        (encoded(FULL, "PNG"), None),
        (encoded(FULL, "PNG"), (0, 65535)),
        (encoded(FULL), None),
        (big_endian(FULL), None),
        (pgm(FULL, 65535), None),
        (pgm(GRADIENT * 4, 1023), None),  # which says of itself what is white
        (encoded(FULL, "PNG", transparency=3), None),
        (encoded((GRADIENT * 16).astype(np.uint16), "PNG"), (0, 4095)),
        (encoded(GRADIENT.astype(np.uint16), "PNG"), (0, 255)),
        (encoded(GRADIENT.astype(np.int32)), (0, 255)),
        (encoded((GRADIENT - 1000).astype(np.int32)), (-1000, -745)),
        (encoded((GRADIENT / 255).astype(np.float32)), (0, 1)),
        (encoded((255 - GRADIENT).astype(np.float32)), (255, 0)),
        (encoded((GRADIENT * 1e-4 - 5).astype(np.float32)), (-5, -5 + 255e-4)),
        (png(np.stack([FULL] * 3, -1), 2), None),
        (png(np.stack([FULL, np.full_like(FULL, 65535)], -1), 4), None),
    ],
)
def test_every_kind_of_grey_shows_the_same_gradient(data, range):
    assert np.abs(levels(data, range).astype(int) - GRADIENT).max() <= (range is not None and min(range) < -2)


def test_sixteen_bits_are_as_they_were_and_the_key_changes_none():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for range in (None, (0, 65535)):
        np.testing.assert_array_equal(decode(encoded(values, "PNG"), 256, 256, 1, range)[..., 0], values >> 8)


@pytest.mark.parametrize(
    ("data", "said", "such_as"),
    [
        (
            encoded((GRADIENT * 16).astype(np.uint16), "PNG"),
            "16-bit integers from 0 to 4032, .* nearly black",
            "[0,4095]",
        ),
        (encoded((GRADIENT + 65000).astype(np.uint16), "PNG"), "from 65000 to 65252, .* nearly white", "[0,65535]"),
        (encoded(GRADIENT.astype(np.uint16), "PNG"), "16-bit integers from 0 to 252", "[0,255]"),
        (big_endian(GRADIENT), "16-bit integers from 0 to 252", "[0,255]"),
        (encoded(GRADIENT.astype(np.int32)), "32-bit integers with a sign from 0 to 252", "[0,255]"),
        (encoded((GRADIENT / 255).astype(np.float32)), "floats from 0 to 0.988235", "[0,1]"),
        (encoded((GRADIENT / 10 - 3).astype(np.float32)), "floats from -3 to 22.2", "[-3,22.2]"),
        (png(np.stack([GRADIENT * 16] * 3, -1), 2), "colours have 16 bits.* from 0 to 15", "[0,65535]"),
        # What is transparent does not count.
        (
            encoded(np.where(GRADIENT > 200, 65535, GRADIENT).astype(np.uint16), "PNG", transparency=65535),
            "to 200",
            "[0,255]",
        ),
    ],
)
def test_what_would_come_out_black_or_white_is_refused_with_its_values(data, said, such_as):
    with pytest.raises(RangeError, match=said) as caught:
        levels(data)
    assert caught.value.such_as == such_as


def test_the_range_of_a_file_goes_from_black_to_white():
    found = levels(encoded((GRADIENT / 1000 + 7).astype(np.float32)), "file")
    np.testing.assert_allclose(found, GRADIENT * 255 / 252, atol=1)
    assert (found[0, 0], found[0, -1]) == (0, 255)
    with pytest.raises(PictureError, match="blank: its values are floats from 2 to 2"):
        levels(encoded(np.full((8, 64), 2, np.float32)), "file")


def test_values_beyond_the_range_are_cut_off_unless_nearly_all_are():
    data = encoded((GRADIENT - 100).astype(np.float32))
    np.testing.assert_array_equal(levels(data, (0, 100)), np.clip((GRADIENT - 100) * 2.56, 0, 255).astype(np.uint8))
    with pytest.raises(PictureError, match="from -100 to 152, nearly all of them outside of the range from 500 to 900"):
        levels(data, (500, 900))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("range", [None, (0, 1), "file"])
def test_values_that_are_no_numbers_are_a_broken_picture(bad, range):
    values = (GRADIENT / 255).astype(np.float32)
    values[3, 5] = bad
    with pytest.raises(PictureError, match="no numbers") as caught:
        levels(encoded(values), range)
    assert not isinstance(caught.value, RangeError)


def test_transparent_values_of_sixteen_bits_are_white_and_no_others():
    found = levels(encoded(FULL, "PNG", transparency=int(FULL[0, 10])))
    expected = GRADIENT.copy()
    expected[:, 10] = 255
    np.testing.assert_array_equal(found, expected)
    colours = png(np.stack([FULL] * 3, -1), 2, struct.pack(">HHH", *[int(FULL[0, 10])] * 3))
    np.testing.assert_array_equal(levels(colours), expected)


def test_transparency_that_hides_all_is_a_broken_picture():
    def rgba(colour, alpha):
        return encoded(np.broadcast_to(np.array([*colour, alpha], np.uint8), (8, 64, 4)).copy(), "PNG")

    hidden = [rgba((9, 9, 9), 0), rgba((9, 9, 9), 1), rgba((255, 255, 255), 128)]
    palette = Image.new("P", (64, 8), 1)
    palette.putpalette([0, 0, 0, 50, 60, 70])
    hidden.append(encoded(palette, "PNG", transparency=1))
    for data in (*hidden, encoded(np.full((8, 64), 3, np.uint16), "PNG", transparency=3)):
        with pytest.raises(PictureError, match="transparency hides all of it"):
            levels(data)
    np.testing.assert_array_equal(levels(rgba((255, 255, 255), 255)), 255)  # a white picture, nothing hidden
    np.testing.assert_array_equal(levels(rgba((0, 0, 0), 128)), 127)
    np.testing.assert_array_equal(levels(encoded(palette, "PNG", transparency=0)), levels(encoded(palette, "PNG")))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_pictures_of_eight_bits_are_what_pillow_says(mode):
    picture = Image.fromarray(np.stack([GRADIENT, GRADIENT[::-1], 252 - GRADIENT], -1).astype(np.uint8)).convert(mode)
    format = "TIFF" if mode == "CMYK" else "PNG"
    expected = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(decode(encoded(picture, format), 8, 64, 3), expected)


@pytest.mark.parametrize("format", ["TIFF", "GIF", "PNG", "WEBP"])
def test_of_many_pages_the_first_is_used_and_that_is_said(format):
    pages = [Image.new("L", (64, 8), level) for level in (40, 90, 200)]
    told = []
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(pages[0], format, save_all=True, append_images=pages[1:], **options)
    np.testing.assert_array_equal(decode(data, 8, 64, 1, None, told.append), 40)
    assert told == ["has more than one page or frame, of which the first is used"]
    decode(encoded(pages[0], format), 8, 64, 1, None, told.append)
    assert len(told) == 1


@pytest.mark.parametrize(
    "value", [[1], [1, 1], [1, 2, 3], [True, 2], ["0", "1"], [0, float("nan")], "all", 5, [0, 1e308]]
)
def test_a_range_that_is_none(value):
    with pytest.raises(ConfigError, match=r"dataset.range=.*: expected \[BLACK,WHITE\], .*, file, set or null"):
        checked_range("dataset.range", value)


def test_the_range_of_a_set_is_of_all_its_deep_greys():
    data = [encoded(np.array([[low, high]], np.float32)) for low, high in ((0, 3), (-2, 1))]
    others = [encoded(GRADIENT.astype(np.uint8), "PNG"), b"no picture"]
    reads = [lambda each=each: each for each in (*data, *others)]
    assert range_of(reads) == (-2, 3)
    assert range_of(reads[2:]) is None


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Six classes of three pictures: floats between 0 and some units, the gradient in a part of each."""
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    for c in range(6):
        (tmp_path / "data" / f"c{c}").mkdir(parents=True)
        for k in range(3):
            values = np.roll(GRADIENT, 8 * k, 1).astype(np.float32) / 25.2 * (1 + c) / 6
            (tmp_path / "data" / f"c{c}" / f"{k}.tif").write_bytes(encoded(values))
    return tmp_path / "data"


SETTINGS = {"way": 2, "shot": 1, "query_shot": 1, "image_size": 64, "channels": 1, "split": "shuffled"}


def test_a_folder_of_floats_is_refused_by_file_and_key_or_brought_to_a_range(folder):
    settings = SETTINGS | {"source": str(folder)}
    with pytest.raises(DataError, match=r"data/c0/0.tif: its values are floats from 0 to 1.66667.*dataset.range=\[0,"):
        image_folder(**settings)
    assert not list((folder.parent / "cache").glob("image_folder-*/manifest.json"))
    by_set, by_number, by_file = (image_folder.load(**only_load(settings), range=r) for r in ("set", [0, 10], "file"))
    np.testing.assert_array_equal(by_set.bank.images, by_number.bank.images)
    assert by_set.protocol["range"] == [0.0, 10.0] and by_number.protocol["range"] == (0, 10)
    assert by_file.protocol["range"] == "file"
    first, last = by_number.bank.images[0, 0, :, 0], by_number.bank.images[-3, 0, :, 0]
    assert first.max() == 42 and last.max() == 255  # a sixth of the range, and all of it
    assert {int(image.max()) for image in by_file.bank.images} == {255}


def only_load(settings):
    return {key: value for key, value in settings.items() if key not in ("way", "shot", "query_shot")}


def test_without_a_range_the_protocol_has_none(tmp_path, folder):
    for path in folder.rglob("*.tif"):
        path.with_suffix(".png").write_bytes(encoded(np.roll(FULL, int(path.stem), 1), "PNG"))
        path.unlink()
    loaded = image_folder.load(**only_load(SETTINGS), source=str(folder))
    assert "range" not in loaded.protocol
    np.testing.assert_array_equal(loaded.bank.images[0, ::8, :, 0], decode(encoded(FULL, "PNG"), 64, 64, 1)[::8, :, 0])


@pytest.fixture
def no_programs(monkeypatch):
    """Fails where a picture would have a program run."""
    called = []

    def run(*arguments, **settings):
        called.append(arguments)
        raise OSError("a program was run")

    monkeypatch.setattr(PIL.EpsImagePlugin, "Ghostscript", run)
    monkeypatch.setattr(subprocess, "Popen", run)
    with pytest.raises(OSError, match="a program was run"):
        Image.open(io.BytesIO(EPS)).load()  # that page would do it
    called.clear()
    yield
    assert called == []


def test_no_format_has_an_interpreter():
    assert not {"EPS", "PDF", "WMF", "SVG", "FPX", "MIC"} & {*decoding.FORMATS}


def test_a_document_by_the_name_of_a_picture_is_not_opened(no_programs, folder, tmp_path, capsys):
    (folder / "c0" / "3.png").write_bytes(EPS)
    loaded = image_folder.load(**only_load(SETTINGS), source=str(folder), range="set")
    assert len(loaded.bank.images) == 18 and "c0/3.png (no picture of a known format)" in capsys.readouterr().err
    with pytest.raises(DataError, match="A drawing of A/character01/1.png cannot be read: no picture"):
        _ink("A/character01/1.png", EPS)
    with pytest.raises(PictureError, match="no picture of a known format"), in_words():
        opened(EPS)


def test_miniimagenet_opens_no_document(no_programs, tmp_path, monkeypatch):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("metarun.data.mini_imagenet.CLASSES", {split: its[:1] for split, its in CLASSES.items()})
    for its in CLASSES.values():
        (tmp_path / "data" / its[0]).mkdir(parents=True)
        (tmp_path / "data" / its[0] / "0.png").write_bytes(EPS)
    with pytest.raises(DataError, match="0.png of .* is broken: no picture of a known format"):
        mini_imagenet(way=2, shot=1, query_shot=1, source=str(tmp_path / "data"))
    deep = encoded((GRADIENT * 16).astype(np.uint16), "PNG")
    for path in (tmp_path / "data").rglob("*.png"):
        path.write_bytes(deep)
    with pytest.raises(DataError, match="none of miniImageNet's, which have 8 bits: its values are 16-bit integers"):
        mini_imagenet(way=2, shot=1, query_shot=1, source=str(tmp_path / "data"))


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "LA"])
def test_a_drawing_that_is_not_black_on_white_is_refused(mode):
    with pytest.raises(DataError, match="a drawing is black on white"):
        _ink("A/character01/1.png", encoded(Image.new(mode, (105, 105)), "PNG"))


def test_threads_wait_for_each_other_where_pixels_would_take_too_much(monkeypatch, tmp_path):
    """Eight threads, room for two pictures at a time: two are decoded at once, and one that is larger than all alone."""
    inside, most, lock = [], [], threading.Lock()
    decoded = decoding.ImageOps.exif_transpose

    def watched(image, **settings):
        with lock:
            inside.append(image.width * image.height)
            most.append(sum(inside))
        time.sleep(0.01)
        decoded(image, **settings)
        with lock:
            inside.remove(image.width * image.height)

    monkeypatch.setattr(decoding.ImageOps, "exif_transpose", watched)
    monkeypatch.setattr("metarun.data.pictures.WORKERS", 8)
    monkeypatch.setattr(decoding, "DECODED_BYTES", 2 * 100 * 100 * decoding.BYTES_PER_PIXEL)
    for k in range(16):
        (tmp_path / f"{k:02}.png").write_bytes(encoded(Image.new("RGB", (100, 100)), "PNG"))
    (tmp_path / "99.png").write_bytes(encoded(Image.new("RGB", (500, 100)), "PNG"))
    assert len(list(read_all(list(in_folder(tmp_path)), (4, 4, 3), {}))) == 17
    assert max(each for each in most if each < 50_000) == 20_000 and max(most) == 50_000
