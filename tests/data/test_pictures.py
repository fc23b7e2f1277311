import io
import os
import struct
import zipfile
import zlib
from pathlib import PurePosixPath

import numpy as np
import pytest
from PIL import Image, ImageFile

from metarun.data import pictures
from metarun.data.decoding import PictureError, decode
from metarun.data.pictures import (
    border_level,
    in_folder,
    in_zips,
    left_out_in_words,
    read_all,
    read_classes,
)
from metarun.errors import DataError

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def encoded(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def png_that_states(width, height):
    """A picture of a few bytes whose header promises more."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_a_picture_of_the_right_size_is_itself():
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(PIXELS)), 4, 6, 3), PIXELS)


def test_grey_and_colour():
    grey = PIXELS[..., 0]
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(grey)), 4, 6, 3), np.stack([grey] * 3, -1))
    # ITU-R 601-2 luma, to the nearest of 255 levels.
    luma = decode(encoded(Image.fromarray(PIXELS)), 4, 6, 1)[..., 0]
    np.testing.assert_allclose(luma, PIXELS @ [0.299, 0.587, 0.114], atol=0.51)


def test_sixteen_bits_keep_their_upper_eight():
    deep = (np.arange(24, dtype=np.uint16) * 2700).reshape(4, 6)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(deep)), 4, 6, 1)[..., 0], deep >> 8)


def test_transparency_is_white_and_a_palette_is_its_colours():
    clear = np.concatenate([PIXELS, np.zeros((4, 6, 1), np.uint8)], 2)
    clear[0, :, 3] = 255
    shown = np.concatenate([PIXELS[:1], np.full((3, 6, 3), 255, np.uint8)])
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(clear)), 4, 6, 3), shown)
    few = Image.fromarray(PIXELS).convert("P")
    np.testing.assert_array_equal(decode(encoded(few), 4, 6, 3), np.asarray(few.convert("RGB")))


def test_a_camera_held_sideways():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(PIXELS), exif=exif), 6, 4, 3), np.rot90(PIXELS, -1))


def test_a_plain_picture_stays_plain_at_any_size():
    plain = Image.new("RGB", (50, 20), (10, 200, 30))
    np.testing.assert_array_equal(decode(encoded(plain), 7, 9, 3), np.broadcast_to([10, 200, 30], (7, 9, 3)))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no picture"),
        (b"not a picture", "no picture"),
        (
            encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50, 3), np.uint8)), "JPEG")[:900],
            "trunc",
        ),
        (encoded(Image.fromarray(PIXELS))[:-30], "trunc"),
        (png_that_states(100, 100), "trunc"),
        (png_that_states(20_000, 20_000), "100,000,000 pixels"),
        (png_that_states(2_000_000, 2_000_000), "100,000,000 pixels"),
    ],
    ids=["empty", "text", "jpeg cut off", "png cut off", "png without its pixels", "bomb", "larger bomb"],
)
def test_what_is_no_picture_says_why(data, why, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(PictureError, match=why):
        decode(data, 4, 6, 3)


def test_a_document_is_not_rendered():
    # PostScript is a program: Pillow would have Ghostscript run it.
    with pytest.raises(PictureError, match="no picture of a known format"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 6\n%%EndComments\n", 4, 6, 3)


def test_a_folder_is_listed_by_path_without_hidden_files(tmp_path):
    for name in ("b/2.png", "b/1.png", "a/x.txt", "a/.hidden", ".git/y.png", "__MACOSX/b/._1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(name.encode())
    entries = list(in_folder(tmp_path))
    assert [str(entry.path) for entry in entries] == ["a/x.txt", "b/1.png", "b/2.png"]
    assert entries[1].read() == b"b/1.png"


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_read(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "here").write_bytes(b"here")
    (root / "in").symlink_to("here")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "nowhere").symlink_to("no such file")
    by_name = {entry.path.name: entry for entry in in_folder(root)}
    assert by_name["in"].read() == b"here"
    with pytest.raises(PictureError, match="a link that leads out of"):
        by_name["out"].read()
    with pytest.raises(PictureError, match="No such file"):
        by_name["nowhere"].read()


def test_archives_are_read_in_place(tmp_path):
    for number, name in enumerate(("one.zip", "two.zip")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for k in (2, 1):
                archive.writestr(f"Größe {number}/{k}.png", f"{number} {k}")
    entries = list(in_zips([tmp_path / "one.zip", tmp_path / "two.zip"]))
    assert [entry.path for entry in entries] == [PurePosixPath(f"Größe {n}/{k}.png") for n in (0, 1) for k in (1, 2)]
    assert [entry.read() for entry in entries] == [b"0 1", b"0 2", b"1 1", b"1 2"]


@pytest.mark.parametrize("name", ["../up.png", "a/../../up.png", "/etc/up.png", "..\\up.png"])
def test_an_archive_with_names_outside_of_it_is_refused(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(DataError, match="outside of it"):
        list(in_zips([tmp_path / "bad.zip"]))


def test_a_file_that_is_no_archive(tmp_path):
    (tmp_path / "bad.zip").write_bytes(b"<html>")
    with pytest.raises(DataError, match="bad.zip is no zip archive"):
        list(in_zips([tmp_path / "bad.zip"]))


def test_an_entry_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(100_000))
        archive.writestr("good.png", bytes(1000))
    bomb, good = in_zips([tmp_path / "bomb.zip"])
    with pytest.raises(PictureError, match="unpacks to 100,000 bytes"):
        bomb.read()
    assert len(good.read()) == 1000


def test_a_damaged_entry_says_so(tmp_path):
    path = tmp_path / "damaged.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"0123456789" * 10)
    path.write_bytes(path.read_bytes().replace(b"0123456789" * 3, b"0123456780" * 3, 1))
    (entry,) = in_zips([path])
    with pytest.raises(PictureError, match="cannot be unpacked"):
        entry.read()


def test_pictures_come_in_their_order_and_what_is_left_out_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "AT_ONCE", 2)
    for k in range(7):
        Image.fromarray(np.full((2, 2), 30 * k, np.uint8)).save(tmp_path / f"{k}.png")
    (tmp_path / "3.png").write_bytes(b"no picture")
    left_out = {}
    found = list(read_all(list(in_folder(tmp_path)), (2, 2, 1), left_out))
    assert [(str(path), int(image[0, 0, 0])) for path, image in found] == [
        (f"{k}.png", 30 * k) for k in range(7) if k != 3
    ]
    assert list(left_out) == ["3.png"]
    said = left_out_in_words(tmp_path, left_out)
    assert said == f"1 of the files in {tmp_path} cannot be used: 3.png (no picture of a known format)."


def test_each_folder_with_pictures_is_a_class(tmp_path):
    for path in ("b/1.png", "a/2.png", "b/deep/1.png", "a/1.png", "stray.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 2)).save(tmp_path / path)
    left_out = {}
    found = {name: images.shape for name, images in read_classes(list(in_folder(tmp_path)), (2, 3, 1), left_out)}
    assert found == {"a": (2, 2, 3, 1), "b": (1, 2, 3, 1), "b/deep": (1, 2, 3, 1)}
    assert left_out == {"stray.png": "in no class's folder"}


def test_the_level_of_the_border_is_the_median_of_the_outermost_pixels():
    images = np.full((3, 5, 4, 3), 255, np.uint8)
    images[:, 1:-1, 1:-1] = 7
    assert border_level(images) == 1
    images[:2, 0] = images[:2, -1] = images[:2, :, 0] = images[:2, :, -1] = 51
    assert border_level(images) == 0.2


def test_links_to_folders_are_followed_and_loops_are_named(tmp_path):
    root = tmp_path / "root"
    for name in ("raw/a", "b"):
        (root / name).mkdir(parents=True)
        (root / name / "1.png").write_bytes(name.encode())
    (root / "a").symlink_to("raw/a")
    (root / "raw" / "a" / "up").symlink_to("../..")
    (root / "b" / "itself").symlink_to("itself")
    (root / "nothing").symlink_to("../raw")
    (root / ".git").symlink_to("/")
    (tmp_path / "link").symlink_to(root)
    found = {str(file.path): file for file in in_folder(tmp_path / "link")}
    loops = ["a/up", "raw/a/up"]
    assert list(found) == ["a/1.png", "a/up", "b/1.png", "b/itself", "nothing", "raw/a/1.png", "raw/a/up"]
    assert found["a/1.png"].read() == b"raw/a"
    for name in loops:
        with pytest.raises(PictureError, match="a link to a folder that it is in"):
            found[name].read()
    for name in ("b/itself", "nothing"):
        with pytest.raises(PictureError, match="a link to nothing"):
            found[name].read()
    left_out = {}
    list(read_classes([found["nothing"], found["a/up"]], (2, 2, 1), left_out))
    assert (
        left_out["nothing"].startswith("a link to nothing") and left_out["a/up"] == "a link to a folder that it is in"
    )


def test_loops_out_of_the_folder_end_where_links_are_followed(tmp_path):
    for name in ("root", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.png").write_bytes(b"")
    (tmp_path / "root" / "away").symlink_to("../other")
    (tmp_path / "other" / "back").symlink_to("../root")
    paths = [str(file.path) for file in in_folder(tmp_path / "root", links="follow")]
    assert paths == ["away/back", "away/other.png", "root.png"]
    with pytest.raises(DataError, match="1 links to folders that lead out of it: away.*unless you set links=follow"):
        list(in_folder(tmp_path / "root", key="links"))


def test_links_that_double_what_there_is_at_every_turn_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_LINKS", 100)
    for turn in range(12):
        (tmp_path / str(turn)).mkdir()
        for name in "ab":
            (tmp_path / str(turn) / name).symlink_to(f"../{turn + 1}")
    (tmp_path / "12").mkdir()
    with pytest.raises(DataError, match="has more than 100 links to folders"):
        list(in_folder(tmp_path))


def test_a_pipe_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (entry,) = in_folder(tmp_path)
    with pytest.raises(PictureError, match="neither a file nor a folder"):
        entry.read()


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    (entry,) = in_folder(tmp_path)
    assert str(entry.path) == "closed" and entry.unusable == "a folder that cannot be read: Permission denied"


def test_a_link_in_an_archive_is_not_followed(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    link = zipfile.ZipInfo("a/link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, str(tmp_path / "secret.png"))
    (entry,) = in_zips([tmp_path / "a.zip"])
    with pytest.raises(PictureError, match="a link, which in an archive is not followed"):
        entry.read()
