"""Several data sets as one: of which a task is, what its images are, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_run import call, draw, draw_classes

from metarun.commands import cli
from metarun.data.contents import content_hashes
from metarun.data.fitting import RESIZE, fit_images
from metarun.data.mixture import mixture
from metarun.errors import ConfigError, DataError
from metarun.training.result import read_result

SIZES = {"small": (8, "L"), "large": (20, "RGB"), "other": (8, "L")}
FITTED = {"small": "", "large": f"{RESIZE}, greys by BT.601", "other": ""}
TASK = {"way": 2, "shot": 1, "query_shot": 2}


def write_folder(folder, name, classes=12, images=4, seed=0):
    """A folder of pictures by class, of one size and mode."""
    side, mode = SIZES[name]
    levels = np.random.default_rng([seed, side, len(mode), *name.encode()])
    for c in range(classes):
        (folder / name / f"{c:02d}").mkdir(parents=True)
        for i in range(images):
            pixels = levels.integers(0, 256, (side, side, 3)[: 2 + (mode == "RGB")], np.uint8)
            Image.fromarray(pixels, mode).save(folder / name / f"{c:02d}" / f"{i}.png")
    return {
        "dataset": "image_folder",
        "source": str(folder / name),
        "image_size": side,
        "channels": 1 if mode == "L" else 3,
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("domains")
    return {name: write_folder(folder, name) for name in SIZES}


@pytest.fixture(scope="module")
def of_three(folders):
    """Two domains, one of which has three times the weight, and one that is held out."""
    return mixture(
        **TASK,
        domains={"small": folders["small"], "large": {**folders["large"], "weight": 3}},
        held_out={"other": folders["other"]},
        image_size=8,
    )


def images_of(bank, number):
    """Those of a domain, of twelve classes of four images each."""
    return bank.images[48 * number : 48 * (number + 1)]


def domains_of(source, key):
    """Which domains the images of a task are of, by number."""
    task = source.sample(source.data, jax.random.key(key))
    hashes = content_hashes(np.asarray(jnp.concatenate([task.support.x, task.query.x])))
    return {n for n in range(3) if np.isin(hashes, content_hashes(images_of(source.data, n))).any()}


def test_a_task_is_of_one_domain_as_often_as_its_weight_says(of_three):
    found = [domains_of(of_three.train, key) for key in range(200)]
    assert {*map(len, found)} == {1}
    large = np.mean([domains == {1} for domains in found])
    assert abs(large - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 200) and not any(2 in domains for domains in found)
    assert not any(2 in domains_of(of_three.val, key) for key in range(20))


def test_meta_test_has_a_source_for_each_domain_and_of_one_held_out_all_classes(of_three):
    assert [*of_three.domains] == ["small", "large", "other"]
    for number, source in enumerate(of_three.domains.values()):
        assert all(domains_of(source, key) == {number} for key in range(5))
    assert [len(source.data.count) for source in of_three.domains.values()] == [2, 2, 12]
    assert of_three.protocol["classes"] == {"train": 16, "val": 4, "test": 16}
    assert {n for key in range(40) for n in domains_of(of_three.test, key)} == {0, 1, 2}


def test_images_are_brought_to_one_shape_as_a_learners_are(of_three, folders):
    from metarun.data.image_folder import image_folder

    settings = {key: value for key, value in folders["large"].items() if key != "dataset"}
    own = image_folder.load(**settings)
    fitted = fit_images(jnp.asarray(own.bank.images) / 255, (8, 8, 1))
    ours = images_of(of_three.train.data, 1)
    assert ours.dtype == np.uint8 and np.abs(ours / 255 - np.asarray(fitted)).max() < 0.51 / 255
    alone = image_folder.load(**{key: value for key, value in folders["small"].items() if key != "dataset"})
    np.testing.assert_array_equal(images_of(of_three.train.data, 0), alone.bank.images)


def test_the_protocol_states_what_each_domain_is(of_three):
    stated = of_three.protocol
    assert stated["name"] == "mixture" and stated["fitted_to"] == [8, 8, 1]
    assert {name: facts["weight"] for name, facts in stated["domains"].items()} == {
        "small": 1,
        "large": 3,
        "other": None,
    }
    assert all("sha256" in facts and "split" in facts for facts in stated["domains"].values())
    assert {name: facts["fitted"] for name, facts in stated["domains"].items()} == FITTED


@pytest.mark.parametrize(
    "settings, words",
    [
        ({}, "dataset.domains=None: expected {NAME: {KEY: VALUE}}"),
        ({"domains": {"nothing": {}}}, "dataset.domains.nothing=nothing: expected arrays or "),
        ({"domains": {"small": {"dataset": "nothing"}}}, "dataset.domains.small.dataset=nothing: expected arrays or "),
        ({"domains": {"sinusoid": {}}}, "dataset.domains.sinusoid=sinusoid: expected data sets with classes of images"),
        ({"domains": {"mixture": {}}}, "expected data sets with classes of images"),
        ({"domains": {"glyphs": 3}}, "dataset.domains.glyphs=3: expected {} or {KEY: VALUE}"),
        ({"domains": {"glyphs": {"sorce": 1}}}, "dataset.domains.glyphs=sorce: expected as keys dataset, weight"),
        ({"domains": {"glyphs": {"weight": 0}}}, "dataset.domains.glyphs.weight=0: expected a number above 0"),
        ({"domains": {"omniglot": {"source": "/none"}}}, "dataset.domains.omniglot.source=/none: expected"),
        (
            {"domains": {"glyphs": {}}, "held_out": {"glyphs": {}}},
            "dataset.held_out=glyphs: expected data sets that are not in",
        ),
        ({"domains": {"glyphs": {}}, "image_size": 0}, "dataset.image_size=0"),
        ({"domains": {"glyphs": {}}, "channels": 2}, "dataset.channels=2: expected 1 "),
    ],
)
def test_a_mistake_is_one_message(settings, words):
    with pytest.raises(ConfigError) as raised:
        mixture(**TASK, **settings)
    assert words in str(raised.value)


def test_more_ways_than_one_domain_has_classes_name_it(folders):
    with pytest.raises(ConfigError, match="way=3: expected 2 to 2, the number of classes in small of the val split"):
        mixture(**{**TASK, "way": 3}, domains={"small": folders["small"], "glyphs": {}}, image_size=8)


def test_domains_that_share_images_are_refused(folders):
    with pytest.raises(DataError, match="small and again share 48 images"):
        mixture(**TASK, domains={"small": folders["small"]}, held_out={"again": folders["small"]}, image_size=8)


def test_a_command_trains_on_a_mixture_and_tests_each_domain(tmp_path, capsys, monkeypatch):
    for name, side in (("one", 0), ("two", 1)):
        draw_classes(tmp_path / name)
        for c in range(12 * side):  # other pictures than those of the first
            draw(tmp_path / name / f"{c:02}", f"another class {c}", 6)
    monkeypatch.chdir(tmp_path)
    of = "dataset: image_folder, image_size: 8, channels: 1"
    settings = [
        "dataset=mixture",
        f"dataset.domains={{one: {{{of}, source: one}}}}",
        f"dataset.held_out={{two: {{{of}, source: two}}}}",
        *"dataset.image_size=8 method=protonet model.filters=4 way=2 query_shot=2 eval_query_shot=2".split(),
        *"meta_batch_size=2 eval_every=2 eval_tasks=60 val_tasks=4 logger=jsonl hydra.run.dir=run".split(),
    ]
    code, out, err = call(cli.main, capsys, monkeypatch, *settings, "steps=4")
    assert code == 0, err
    result = read_result(tmp_path / "run" / "result.json")
    found = result["domains"]
    assert [*found] == ["one", "two"] and [its["num_tasks"] for its in found.values()] == [30, 30]
    assert result["num_tasks"] == 60 and result["value"] == pytest.approx(
        np.mean([its["value"] for its in found.values()])
    )
    assert result["ci95"] == pytest.approx(np.hypot(*(its["ci95"] for its in found.values())) / 2)
    assert all(check["passed"] is not False for check in result["checks"].values())
    assert "domain" in out and f"two     {100 * found['two']['value']:.2f}%" in out
    # Its data may be moved, and may stay on the host.
    (tmp_path / "one").rename(tmp_path / "moved")
    settings[1] = settings[1].replace("source: one", "source: moved")
    code, out, err = call(cli.main, capsys, monkeypatch, *settings, "steps=4")
    assert code == 0 and "is complete: 4 steps" in err, err
    streamed = [*settings[:-1], "hydra.run.dir=streamed", "memory.stream=true", "steps=4"]
    assert call(cli.main, capsys, monkeypatch, *streamed)[0] == 0
    assert read_result(tmp_path / "streamed" / "result.json")["domains"] == found
    code, out, err = call(
        cli.eval_main, capsys, monkeypatch, "run=run", "eval_tasks=8", "dataset.domains.one.source=moved"
    )
    assert code == 0 and "two  " in out, err
