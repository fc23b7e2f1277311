"""Items that stay on the host: the same tasks as from the device, in order, and no error lost in the thread."""

import threading

import jax
import numpy as np
import pytest
from banks import images_of

from metarun.compiled.streaming import Prefetch, gatherer
from metarun.compiled.task_map import default_layout
from metarun.data import class_bank
from metarun.data.class_bank import SplitBank
from metarun.data.contents import content_hashes
from metarun.data.episodes import few_shot_data_set
from metarun.errors import MetarunError
from metarun.few_shot.experiment import few_shot_experiment
from metarun.few_shot.methods.pretrain import pretrain
from metarun.few_shot.methods.protonet import protonet
from metarun.models.mlp import mlp
from metarun.training.optimizers import adam


def data_set(tmp_path, **settings):
    """Classes of random images in a file, as they come from the cache."""
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (count, 4, 4, 3), np.uint8) for count in (5, 4, 6, 5, 7, 4)]
    path = tmp_path / "images.npy"
    bank = class_bank.stack(images)
    np.save(path, bank.images)
    bank = bank._replace(images=np.load(path, mmap_mode="r"))
    classes = {"train": [4, 0], "val": [1, 2], "test": [5, 3]}
    settings = {"way": 2, "shot": 1, "query_shot": 2} | settings
    return few_shot_data_set(
        SplitBank(bank, "abcdef", classes, {"name": "noise"}, content_hashes(bank.images)), **settings
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rotations": True, "test_rotations": True, "train_way": 5},
        {"flip": True, "shift": 1, "jitter": 0.3, "rotations": True},
    ],
)
def test_the_same_key_gives_the_same_task_from_the_host_as_from_the_device(tmp_path, settings):
    data = data_set(tmp_path, **settings)
    keys = lambda: jax.random.split(jax.random.key(0), 20)
    for source in (data.train, data.val, data.test, data.train_classes):
        resident = jax.jit(jax.vmap(source.sample, (None, 0)))(source.data, keys())
        items, rest = gatherer(source.stream)(keys())
        assert items.dtype == np.uint8 and items.shape[0] == 20
        streamed = jax.jit(jax.vmap(source.stream.cut))(items, rest)
        jax.tree.map(np.testing.assert_array_equal, resident, streamed)
        assert len({x.tobytes() for x in np.asarray(resident.support.x)}) > 10


def test_only_the_images_of_a_split_are_asked_for(tmp_path):
    source = data_set(tmp_path).val
    items, _ = gatherer(source.stream)(jax.random.split(jax.random.key(1), 50))
    own = {image.tobytes() for image in images_of(source)}
    assert {image.tobytes() for image in items.reshape(-1, 4, 4, 3)} == own


def experiment(data, stream, method="protonet", meta_batch_size=4):
    given = {"encoder": mlp(num_outputs=None, hidden=[8]), "objective": "classification", "num_outputs": 2}
    if method == "protonet":
        learner = protonet(**given)
    else:
        learner = pretrain(**given, num_train_classes=data.num_train_classes)
    return few_shot_experiment(
        {"": learner},
        data,
        adam(outer_lr=0.01, steps=10),
        [default_layout()],
        seed=3,
        eval_seed=0,
        meta_batch_size=meta_batch_size,
        protocol={},
        stream=stream,
    )


# Three tasks do not divide evenly over two devices.
@pytest.mark.parametrize(("method", "meta_batch_size"), [("protonet", 4), ("protonet", 3), ("pretrain", 2)])
def test_a_streamed_run_learns_and_is_judged_as_a_resident_one(tmp_path, method, meta_batch_size):
    data = data_set(tmp_path, rotations=True, flip=True)
    ran = []
    for stream in (False, True):
        one = experiment(data, stream, method, meta_batch_size)
        assert one.prepare().streams == stream
        state, metrics = one.step(one.init(), 5)
        tested = one.evaluate(state.params, "test", 60, checks=True)
        ran.append((jax.device_get((state, dict(metrics))), tested.per_task, tested.checks))
    (resident, scores, checks), (streamed, same_scores, same_checks) = ran
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), resident, streamed)
    np.testing.assert_allclose(scores, same_scores, atol=1e-6)
    assert checks.keys() == same_checks.keys()


def test_grouping_and_going_back_change_no_bit_of_a_streamed_run(tmp_path):
    one = experiment(data_set(tmp_path), True)
    together, _ = one.step(one.init(), 6)
    apart = one.init()  # the thread is ahead, and has to go back
    for size in (1, 3, 2):
        apart, _ = one.step(apart, size)
    jax.tree.map(np.testing.assert_array_equal, together, apart)


def test_a_device_holds_no_more_than_the_tasks_of_a_step(tmp_path):
    data = data_set(tmp_path)
    resident, streamed = (experiment(data, stream).prepare().bytes_predicted for stream in (False, True))
    images = data.train.stream.items.nbytes
    taken = 4 // jax.local_device_count() * (2 * 3) * 4 * 4 * 3  # of a step's tasks on a device
    assert resident - streamed >= images - taken


def test_prefetch_is_ahead_and_in_order():
    fetched, gate = [], threading.Event()

    def fetch(number):
        fetched.append(number)
        if number == 2:
            gate.set()
        return 10 * number

    ahead = Prefetch(fetch)
    assert ahead(0) == 0 and gate.wait(10)
    assert [ahead(number) for number in (1, 2, 3)] == [10, 20, 30]
    assert fetched[:4] == [0, 1, 2, 3] and len(fetched) == len(set(fetched))
    assert ahead(100) == 1000 and ahead(0) == 0


def test_an_error_in_the_thread_comes_out_where_its_result_is_wanted():
    def fetch(number):
        if number == 1:
            raise OSError("the disk is gone")
        return number

    ahead = Prefetch(fetch)
    assert ahead(0) == 0
    with pytest.raises(MetarunError, match="step 2 cannot be read .the disk is gone.*same command continues"):
        ahead(1)
