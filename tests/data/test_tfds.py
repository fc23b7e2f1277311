import io
import json

import numpy as np
import pytest
import tensorflow_datasets
from banks import images_of
from PIL import Image

from metarun.data.class_split import PUBLISHED, SPLITS
from metarun.data.tfds import tfds
from metarun.errors import ConfigError, DataError

SETTINGS = {"way": 2, "shot": 1, "query_shot": 1}
NAMES = ["ant", "bee", "cat", "dog", "emu", "fox", "gnu", "hen", "ibis", "jay"]
PER_CLASS = {"train": 3, "test": 2}


def pixels(label, part, k):
    return np.random.default_rng([label, len(part), k]).integers(0, 256, (6, 6, 3), np.uint8)


def png(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    stream.seek(0)
    return stream


class Menagerie(tensorflow_datasets.core.GeneratorBasedBuilder):
    """Ten kinds of small pictures."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")
    url_infos = {}

    def _info(self):
        features = {
            "image": tensorflow_datasets.features.Image(shape=(6, 6, 3), encoding_format="png"),
            "deep": tensorflow_datasets.features.Image(shape=(6, 6, 1), dtype=np.uint16, encoding_format="png"),
            "thumbnail": tensorflow_datasets.features.Image(shape=(1, 1, 3), encoding_format="png"),
            "label": tensorflow_datasets.features.ClassLabel(names=NAMES),
            "weight": tensorflow_datasets.features.Scalar(np.float32),
        }
        # Not from the files of a package, which a test is not.
        return tensorflow_datasets.core.DatasetInfo(
            builder=self, features=tensorflow_datasets.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {part: self._generate_examples(part) for part in PER_CLASS}

    def _generate_examples(self, part):
        for label in range(len(NAMES)):
            for k in range(PER_CLASS[part]):
                image = pixels(label, part, k)
                yield (
                    f"{label} {k}",
                    {
                        "deep": png(16 * image[..., 0].astype(np.uint16)),
                        "image": png(image),
                        "thumbnail": png(image[:1, :1]),
                        "label": label,
                        "weight": 1.0,
                    },
                )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))


def sorted_images(data):
    """All images of a class bank as a set of bytes for each class."""
    bank = data.data
    return [{image.tobytes() for image in bank.images[f : f + n]} for f, n in zip(bank.first, bank.count, strict=True)]


def expected(label, *parts):
    return {pixels(label, part, k).tobytes() for part in parts for k in range(PER_CLASS[part])}


def test_a_prepared_set_by_name_and_split_by_file(tmp_path):
    lists = {"train": ["fox", "ant", "bee"], "val": ["cat", "dog"], "test": ["jay", "hen"]}
    (tmp_path / "split.json").write_text(json.dumps(lists))
    data = tfds(**SETTINGS, name="menagerie", image_size=6, split=str(tmp_path / "split.json"))
    for split, source in zip(SPLITS, (data.train, data.val, data.test), strict=True):
        assert sorted_images(source) == [expected(NAMES.index(name), "train", "test") for name in lists[split]]
    assert data.protocol["name"] == "menagerie/1.0.0" and data.protocol["split"] == "split.json"
    assert data.protocol["parts"] == "all" and data.protocol["image_size"] == [6, 6]


def test_a_shuffle_of_all_classes():
    data = tfds(**SETTINGS, name="menagerie", image_size=6)
    assert data.protocol["classes"] == {"train": 6, "val": 2, "test": 2} and data.protocol["split_seed"] == 0
    found = sum(map(sorted_images, (data.train, data.val, data.test)), [])
    every = [expected(label, "train", "test") for label in range(10)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, every))
    other = tfds(**SETTINGS, name="menagerie", image_size=6, split_seed=1)
    assert sorted_images(other.train) != sorted_images(data.train)


def test_one_part_few_images_and_another_feature():
    data = tfds(**SETTINGS, name="menagerie", image_size=6, parts="train", images_per_class=2)
    assert set(data.train.data.count.tolist()) == {2}
    assert all(
        images < expected(label, "train")
        for images in sorted_images(data.test)
        for label in range(10)
        if images & expected(label, "train")
    )
    thumbnails = tfds(**SETTINGS, name="menagerie", image_size=1, image="thumbnail", channels=1)
    assert images_of(thumbnails.train).shape == (30, 1, 1, 1)


def test_pictures_of_sixteen_bits_are_brought_to_a_range_and_floats_are_refused(monkeypatch):
    settings = SETTINGS | {"name": "menagerie", "image_size": 6, "channels": 1, "image": "deep"}
    with pytest.raises(
        DataError, match=r"Example \d of .* of menagerie/1.0.0: its values are 16-bit.*dataset.range=\[0,40"
    ):
        tfds(**settings)
    by_number, by_set = (tfds(**settings, range=range) for range in ([0, 4095], "set"))
    grey = {
        pixels(c, part, k)[..., 0].tobytes() for c in range(10) for part in PER_CLASS for k in range(PER_CLASS[part])
    }
    found = (sorted_images(source) for source in (by_number.train, by_number.val, by_number.test))
    assert {image for classes in found for its in classes for image in its} == grey
    assert by_number.protocol["range"] == (0, 4095) and by_set.protocol["range"] == [0, 4080]
    # TFDS keeps floats as the bytes of four channels, and without TensorFlow it cannot write them.
    monkeypatch.setattr(tensorflow_datasets.features.Image, "np_dtype", np.float32)
    with pytest.raises(ConfigError, match="dataset.image=deep: expected a feature with pictures of 8 or 16 bits"):
        tfds(**settings)


def test_the_second_use_reads_the_cache(capsys):
    first = tfds(**SETTINGS, name="menagerie", image_size=6)
    capsys.readouterr()
    second = tfds(**SETTINGS, name="menagerie", image_size=6)
    assert "Building" not in capsys.readouterr().err and second.protocol == first.protocol


def test_published_lists_divide_the_same_hundred_classes():
    cifar_fs, fc100 = (json.loads(PUBLISHED[split].read_text()) for split in ("cifar_fs", "fc100"))
    assert [len(cifar_fs[split]) for split in SPLITS] == [64, 16, 20]
    assert [len(fc100[split]) for split in SPLITS] == [60, 20, 20]
    every = set(sum(cifar_fs.values(), []))
    assert len(every) == 100 and every == set(sum(fc100.values(), []))


@pytest.mark.parametrize(
    ("split", "name", "sizes"),
    [
        ("meta_dataset_cub", "caltech_birds2011", [140, 30, 30]),
        ("meta_dataset_dtd", "dtd", [33, 7, 7]),
        ("meta_dataset_quickdraw", "quickdraw_bitmap", [241, 52, 52]),
        ("meta_dataset_vgg_flower", "oxford_flowers102", [71, 15, 16]),
    ],
)
def test_meta_dataset_s_lists_are_of_the_classes_that_the_catalogue_has(split, name, sizes, tmp_path):
    lists = json.loads(PUBLISHED[split].read_text())
    assert [len(lists[part]) for part in SPLITS] == sizes
    known = tensorflow_datasets.builder(name, data_dir=tmp_path).info.features["label"].names
    assert sorted(sum(lists.values(), [])) == sorted(known)


def test_a_set_of_the_catalogue_without_a_network():
    def as_data_source(self, split, decoders):
        assert self.name == "cifar100" and set(decoders) == {"image"}
        return [{"image": png(pixels(row % 100, split, row)).read(), "label": row % 100} for row in range(200)]

    with tensorflow_datasets.testing.mock_data(as_data_source_fn=as_data_source):
        data = tfds(**SETTINGS, name="cifar100", image_size=6, parts="train+test")
    assert data.protocol["classes"] == {"train": 64, "val": 16, "test": 20}
    found = sum(map(sorted_images, (data.train, data.val, data.test)), [])
    parts = [(part, row) for part in ("train", "test") for row in (0, 100)]
    every = [{pixels(k, part, k + row).tobytes() for part, row in parts} for k in range(100)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, every))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": None}, "dataset.name=None: expected the name of a set"),
        ({"name": "menagery"}, "dataset.name=menagery: expected the name of a set"),
        ({"name": "menagerie/of_glass"}, "dataset.name=menagerie/of_glass"),
        (
            {"image": "picture"},
            "dataset.image=picture: expected one of its features that are such: image, deep, thumbnail",
        ),
        ({"label": "weight"}, "dataset.label=weight: expected one of its features that are such: label"),
        ({"parts": "train+night"}, "dataset.parts=train\\+night: expected all, or of train, test"),
        (
            {"split": "lake"},
            "dataset.split=lake: expected shuffled, cifar_fs, fc100, meta_dataset_cub, meta_dataset_dtd, .*, or the path",
        ),
        ({"channels": 2}, "dataset.channels=2"),
        ({"image_size": -1}, "dataset.image_size=-1"),
        ({"images_per_class": 0}, "dataset.images_per_class=0"),
        ({"split_seed": -1}, "dataset.split_seed=-1"),
    ],
)
def test_settings_that_cannot_be_used(settings, said):
    with pytest.raises(ConfigError, match=said):
        tfds(**{"name": "menagerie", "image_size": 6} | SETTINGS | settings)


def test_a_list_of_other_classes():
    with pytest.raises(DataError, match="cifar_fs.json names .*, which the source does not have; it has e.g. ant"):
        tfds(**SETTINGS, name="menagerie", image_size=6, split="cifar_fs")


def test_a_set_that_cannot_be_prepared_says_where_else_to(monkeypatch):
    def offline(self, **settings):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(Menagerie, "download_and_prepare", offline)
    with pytest.raises(
        DataError, match="TFDS cannot prepare menagerie/1.0.0: no route to host. .* dataset.data_dir=DIR"
    ):
        tfds(**SETTINGS, name="menagerie", image_size=6)
