"""The configuration: every choice composes and builds, every experiment runs, and no key is dead."""

import contextlib
import importlib.util
import io
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from small_omniglot import write_archives
from small_run import and_slowly, draw

from metarun.assembly.few_shot_run import build
from metarun.config import experiments
from metarun.config.composing import groups, register
from metarun.config.directories import run_dir
from metarun.config.hydra_versions import BASE
from metarun.config.schema import COMMANDS
from metarun.config.search_path import conf_dir
from metarun.data import tiered_imagenet
from metarun.data.class_split import PUBLISHED, SPLITS
from metarun.data.mini_imagenet import CLASSES
from metarun.errors import ConfigError, MetarunError
from metarun.report.run_pictures import pictures
from metarun.training import checkpoint, runner
from metarun.training.result import read_result
from metarun.training.run_state import load_selected
from metarun.trust.protocol import protocol_id

CONF = Path(__file__).parents[1] / "conf"
FILES = sorted(CONF.glob("*/experiment/*/*.yaml"))
EXPERIMENTS = sorted(experiments.names(CONF / "few_shot" / "experiment"))
# Files whose keys are explained where they stand; those of an experiment are a run's.
COMMENTED = sorted(file for file in CONF.glob("**/*.yaml") if file not in FILES and file.parent.name != "help")
OF_TFDS = ("tfds", "cifar_fs", "fc100", "cub", "dtd", "vgg_flower", "emnist", "quickdraw")


def paper_of(experiment):
    return experiment.partition("/")[0] + "/"


def choices_of(group):
    return sorted(file.stem for part in ("few_shot", "common") for file in (CONF / part / group).glob("*.yaml"))


@pytest.fixture(scope="module")
def omniglot(tmp_path_factory):
    """A folder with two small archives in the layout of Omniglot's, and with what they unpack to."""
    folder = tmp_path_factory.mktemp("omniglot")
    write_archives(folder, drawings=20)
    for archive in folder.glob("*.zip"):
        shutil.unpack_archive(archive, folder / "unpacked")
    return folder


@pytest.fixture(scope="module")
def mini_imagenet(tmp_path_factory):
    """A folder with twenty small pictures of each class of miniImageNet."""
    root = tmp_path_factory.mktemp("mini_imagenet")
    for wnid in (wnid for classes in CLASSES.values() for wnid in classes):
        (root / wnid).mkdir()
        for k in range(20):
            Image.new("RGB", (1, 1)).save(root / wnid / f"{k}.png")
    return root


@contextlib.contextmanager
def catalogue():
    """TFDS with three small pictures in each class of whichever set it is asked for."""
    stream = io.BytesIO()
    Image.new("RGB", (1, 1)).save(stream, "PNG")

    def as_data_source(self, split, decoders):
        label = self.info.features["label"]
        if self.name == "cifar100":  # TFDS reads their names from the download
            label.names = sorted(sum(json.loads(PUBLISHED["cifar_fs"].read_text()).values(), []))
        return [{"image": stream.getvalue(), "label": k} for k in range(label.num_classes)] * 3

    with tensorflow_datasets.testing.mock_data(as_data_source_fn=as_data_source):
        yield


def composed(*overrides):
    register()
    with initialize_config_dir(str(conf_dir()), **BASE):
        return compose("config", list(overrides), return_hydra_config=True)


def built(*overrides):
    config = composed(*overrides)
    choices = dict(config.hydra.runtime.choices)
    return build(OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]), choices)


def overrides_for(dataset, request):
    """What lets a data set be had in these tests."""
    if dataset in ("omniglot", "image_folder"):
        omniglot = request.getfixturevalue("omniglot")
    if dataset == "omniglot":
        return [f"dataset.source={omniglot}", "dataset.split=lake", "way=2"]
    if dataset == "image_folder":
        return [f"dataset.source={omniglot / 'unpacked'}", "dataset.image_size=28", "way=2"]
    if dataset == "mini_imagenet":
        return [f"dataset.source={request.getfixturevalue('mini_imagenet')}"]
    if dataset == "tiered_imagenet":  # of two classes in each split
        request.getfixturevalue("monkeypatch").setattr(tiered_imagenet, "CLASSES", dict.fromkeys(SPLITS, 2))
        root = request.getfixturevalue("tmp_path") / "tiered"
        for split in SPLITS:
            for c in range(2):
                draw(root / split / f"{split}{c}", f"{split}{c}", 4)
        return [f"dataset.source={root}", "way=2", "eval_query_shot=2"]
    if dataset == "mixture":
        return ["dataset.domains={glyphs: {}}"]
    if dataset == "prior":  # whose tables lack classes by chance
        return ["model=mlp", "method=protonet"]
    if dataset in ("arrays", "tasks"):
        source = request.getfixturevalue("tmp_path") / "own.npz"
        np.savez(source, x=np.arange(200.0)[:, None], y=np.arange(200) // 5, task=np.arange(200) // 20)
        return [f"dataset.source={source}", "way=2", "eval_query_shot=2", "model=mlp"]
    if dataset in OF_TFDS:
        return ["dataset.parts=train", "eval_query_shot=2"] + ["dataset.name=cifar100"] * (dataset == "tfds")
    return []


def test_conf_dir_is_the_checkout():
    assert conf_dir() == CONF / "few_shot" and conf_dir("rl") == CONF / "rl"


# Baselines that learn nothing before they see a task.
WITHOUT_META_PARAMS = ("from_scratch", "nearest_neighbor")
TRACKERS = ("mlflow", "wandb")  # loggers that need packages of their own
CHOICES = [(g, c) for g in ("method", "model", "dataset", "optimizer", "logger") for c in choices_of(g)]


@pytest.mark.parametrize("group, choice", CHOICES)
def test_every_choice_builds_an_experiment_that_starts(group, choice, request):
    overrides = [f"{group}={choice}", *overrides_for(choice, request)]
    if choice in TRACKERS and importlib.util.find_spec(choice) is None:
        pytest.skip(f"{choice} is not installed")
    if choice in ("sinusoid", "gaussian_process"):
        overrides.append("model=mlp")
    if choice == "conv1d":
        overrides += ["dataset=arrays", *overrides_for("arrays", request)[:-1]]
        np.savez(overrides[2].partition("=")[2], x=np.arange(800.0).reshape(200, 4, 1), y=np.arange(200) // 5)
    with catalogue() if choice in OF_TFDS else contextlib.nullcontext():
        state = built(*overrides).experiment.init()
    assert int(state.step) == 0 and bool(state.params) == (choice not in WITHOUT_META_PARAMS)


def test_a_method_without_meta_parameters_takes_one_step_and_is_tested(tmp_path):
    small = ["model=mlp", "model.hidden=[4]", "method.inner_steps=3", "meta_batch_size=2", "eval_tasks=4"]
    run = built("method=from_scratch", "steps=7", "eval_every=3", "optimizer.clip_norm=1", *small)
    arguments = {"facts": run.facts, "identity": run.identity, "pictures": pictures(run.experiment)}
    result = runner.run(run.experiment, run.settings, tmp_path, **arguments)
    assert (result["steps"], result["selected_steps"], result["val"]) == (1, [1], None)
    assert np.isfinite(result["value"]) and result["sizes"] == {"meta_params": 0}
    assert load_selected(checkpoint.newest(tmp_path / "checkpoints", print), {}) == {}
    # Its checkpoint is continued as any other: here there is nothing left but to test.
    (tmp_path / "result.json").unlink()
    again = runner.run(run.experiment, run.settings, tmp_path, **arguments)
    assert (again["value"], again["steps"]) == (result["value"], 1)


def test_pretraining_sees_all_classes_and_is_tested_on_tasks(tmp_path):
    small = ["model=mlp", "model.hidden=[4]", "meta_batch_size=2", "eval_tasks=4", "val_tasks=4"]
    run = built("method=pretrain", "method.eval_inner_steps=3", "steps=2", "eval_every=2", *small)
    classes = run.experiment.protocol["dataset"]["classes"]["train"]
    assert run.facts["sizes"] == {"meta_params": (28 * 28 + 1) * 4 + (4 + 1) * classes}
    result = runner.run(run.experiment, run.settings, tmp_path, facts=run.facts, identity=run.identity)
    assert result["steps"] == 2 and np.isfinite(result["value"])


def test_the_size_of_a_hypernetwork_is_stated():
    sizes = built("method=hypernetwork", "model.filters=4").facts["sizes"]
    # Four convolutions of 4 filters with scale and shift each, and 2 * 2 * 4 features to 5 classes.
    body, head = 9 * 4 + 3 * 9 * 4 * 4 + 4 * 2 * 4, 17
    assert sizes["generated"] == body + head * 5
    assert sizes["generator"] == 8 * body + 64 * head
    assert sizes["meta_params"] == body + sizes["generator"] + sizes["reader"]


# Those that also run, as far as the time of the tests allows.
RUN = (
    "finn2017/maml_sinusoid",
    "finn2017/maml_omniglot_5w1s",
    "finn2017/maml_omniglot_5w1s_quick",
    "snell2017/protonet_omniglot_5w1s",
)


def data_overrides(config, request):
    dataset = config.dataset._target_.rpartition(".")[2]
    # The small archives have few characters, and a task has no more classes than what it is cut from.
    few = []
    if dataset == "omniglot" and not isinstance(config.way, int):
        few = ["way=[2,4]"]
    elif dataset == "omniglot" and config.train_way:
        few = ["train_way=4", f"way={min(config.way, 4)}"]
    return few + (overrides_for(dataset, request) if dataset != "prior" else [])


# The first of each paper, and the others where there is time.
FIRST = {paper: next(name for name in EXPERIMENTS if name.startswith(paper)) for paper in map(paper_of, EXPERIMENTS)}


@pytest.mark.parametrize("experiment", and_slowly(EXPERIMENTS, FIRST.values()))
def test_every_experiment_starts(experiment, request):
    config = composed(f"experiment={experiment}")
    run = built(f"experiment={experiment}", *data_overrides(config, request))
    assert jax.tree.leaves(jax.eval_shape(run.experiment.init).params) or run.facts["method"] in WITHOUT_META_PARAMS
    name = r"\w+/(\w+?)_(?:sinusoid|(?:omniglot|mini_imagenet)_(\d+)w(\d+)s)"
    if experiment.startswith("unpublished/"):  # named by what differs between them, a method or a body of one
        name = r"\w+/(omniglot|sinusoid|prior|gaussian_process)_\w+?(?:_(\d+)w(\d+)s)?$"
    method, way, shot = re.match(name, experiment).groups()
    assert method in (run.facts["method"], run.facts["dataset"])
    assert way is None or (config.way, config.shot) == (int(way), int(shot))


@pytest.mark.parametrize("experiment", and_slowly(RUN, RUN[:1]))
def test_an_experiment_runs_two_steps(experiment, request, tmp_path):
    small = ["steps=2", "steps_per_dispatch=1", "eval_every=1", "val_tasks=4", "eval_tasks=4", "meta_batch_size=2"]
    run = built(f"experiment={experiment}", *small, *data_overrides(composed(f"experiment={experiment}"), request))
    result = runner.run(run.experiment, run.settings, tmp_path, facts=run.facts, identity=run.identity)
    assert result["steps"] == 2 and np.isfinite(result["value"])
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_file_of_experiments_begins_with_a_command(file):
    head = file.read_text().split("\ndefaults:")[0].split("\ncell:")[0].splitlines()
    part = file.parents[2].name
    said = [re.fullmatch(rf"#   {COMMANDS[part]} experiment=(\S+)( dataset.source=DIR)?", line) for line in head]
    (command,) = filter(None, said)
    assert head[0] == "# @package _global_"
    assert command[1] in list(experiments.names(CONF / part / "experiment"))
    assert command[1].startswith(f"{file.parent.name}/{file.stem}")


def test_help_lists_the_choices_and_counts_the_experiments():
    lines = dict(line.split(": ", 1) for line in groups("few_shot").splitlines())
    assert lines["logger"] == "jsonl, mlflow, tensorboard, wandb" and lines["method"].split(", ") == choices_of(
        "method"
    )
    assert lines["experiment"].startswith(f"{len(EXPERIMENTS)} published cells")
    assert set(lines) == {"dataset", "logger", "method", "model", "optimizer", "experiment"}


def test_an_experiment_has_the_last_word_but_for_the_command_line():
    assert built("experiment=finn2017/maml_sinusoid").settings.steps == 70000
    assert built("experiment=finn2017/maml_sinusoid", "steps=7").settings.steps == 7


def test_a_method_sets_what_it_needs_of_the_run_and_the_command_line_has_the_last_word():
    config = composed("method=reptile")
    assert (config.query_shot, config.outer_lr, config.optimizer._target_) == (
        9,
        1.0,
        "metarun.training.optimizers.sgd",
    )
    config = composed("method=reptile", "query_shot=4", "outer_lr=0.5", "optimizer=adam")
    assert (config.query_shot, config.outer_lr, config.optimizer._target_) == (
        4,
        0.5,
        "metarun.training.optimizers.adam",
    )
    assert composed("method=maml").query_shot == 2


@pytest.mark.parametrize("file", COMMENTED, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_every_key_has_a_comment(file):
    body = file.read_text().split("\nhydra:")[0]
    for line in body.splitlines():
        if line.strip() and not line.strip().startswith(("#", "_target_", "defaults", "- ", "method:")):
            assert " # " in line, f"{file.name}: {line}"


@pytest.mark.parametrize(
    "overrides, word",
    [
        (["+colour=red"], "colour=red"),
        (["dataset=sinusoid", "model=mlp", "way=20"], "way=20"),
        (["+method.outer_steps=3"], "method.outer_steps"),
        (["+model.depth=4"], "model.depth"),
        (["+method.remat=true"], "method.remat"),
        (["+logger.color=1"], "logger.color"),
        (["+logger.tensorboard.color=1"], "logger.tensorboard.color"),
    ],
)
def test_a_key_that_nothing_reads_fails(overrides, word):
    with pytest.raises(MetarunError, match=f"{word}.* is read by nothing"):
        built(*overrides)


@pytest.mark.parametrize(
    "override, allowed",
    [
        ("memory.limit=lots", "a size such as 8GB"),
        ("memory.chunk=0", "auto, or a whole number"),
        ("memory.chunk=all", "auto, or a whole number"),
        ("memory.remat=1", "auto, true or false"),
        ("memory.stream=1", "auto, true or false"),
    ],
)
def test_a_memory_setting_that_cannot_be_used_is_named(override, allowed):
    with pytest.raises(ConfigError, match=f"{override}: expected {allowed}"):
        built(override)


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["way=[20,5]"], r"way=\[20, 5\]: expected the smaller number first, \[5,20\]"),
        (["method=protonet", "way=[5,900]"], r"way=\[5, 900\]: expected 2 to \d+, the number of classes"),
        (["way=[3,5]"], r"way=\[3, 5\]: expected a number for method=maml.* an output for each class"),
        (["train_way=[3,5]"], r"train_way=\[3, 5\]: expected a number for method=maml"),
        (
            ["dataset=prior", "model=mlp"],
            r"dataset=prior: expected one whose tasks are all of one way, for method=maml",
        ),
        (["method=reptile", "shot=[1,3]"], r"shot=\[1, 3\]: expected a number for method=reptile"),
        (
            ["method=protonet", "way=[3,5]", "method.query_statistics=query"],
            "query_statistics=query: expected support or each",
        ),
        (["method=protonet", "shot=[1,3]", "dataset.sampling=odd"], "dataset.sampling=odd: expected"),
        (["method=protonet", "shot=1.5"], "shot=1.5: expected a whole number, 1 or more, or a range"),
    ],
)
def test_a_range_that_cannot_be_is_refused(overrides, words):
    with pytest.raises(ConfigError, match=words):
        built(*overrides)


def test_tasks_of_any_shape_are_trained_on_tested_and_told_apart(tmp_path):
    small = ["model.filters=4", "meta_batch_size=2", "eval_tasks=60", "eval_every=0"]
    run = built("method=protonet", "way=[3,5]", "shot=[1,2]", "steps=2", *small)
    assert run.facts["way"] == [3, 5] and run.experiment.protocol["dataset"]["sampling"] == "equal"
    arguments = {"facts": run.facts, "identity": run.identity, "pictures": pictures(run.experiment)}
    result = runner.run(run.experiment, run.settings, tmp_path, **arguments)
    assert read_result(tmp_path / "result.json")["way"] == [3, 5]
    for field, sizes in (("by_way", ["3", "4", "5"]), ("by_shot", ["1", "2"])):
        parts = result[field]
        assert [*parts] == sizes and sum(its["num_tasks"] for its in parts.values()) == 60
        assert sum(its["value"] * its["num_tasks"] for its in parts.values()) / 60 == pytest.approx(result["value"])
    assert all(check["passed"] is not False for check in result["checks"].values())
    assert (tmp_path / "plots" / "by_size.png").stat().st_size > 5000


def test_a_method_without_inner_steps_has_nothing_to_rematerialise(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "plain_method.py").write_text(
        "from metarun.few_shot.methods.maml import maml\n\n\n"
        "def plain(*, model, objective):\n    return maml(model=model, objective=objective)\n"
    )
    plain = ["experiment=finn2017/maml_sinusoid", "~method.inner_lr", "~method.inner_steps", "~method.eval_inner_steps"]
    plain += ["~method.first_order", "~method.inner_params", "~method.inner_reduction", "~method.query_statistics"]
    plain += ["method._target_=plain_method.plain"]
    assert built(*plain).experiment.prepare().variant == ""
    with pytest.raises(ConfigError, match=r"memory\.remat=True: expected auto or false"):
        built(*plain, "memory.remat=true")


@pytest.mark.slow
def test_images_stay_on_the_host_where_they_would_take_half_of_a_device():
    # The images of glyphs take 19 MB, a step of a small network much less.
    small = ["method=protonet", "model=mlp"]
    for limit, streams in (("1GB", False), ("30MB", True)):
        assert built(*small, f"memory.limit={limit}").experiment.prepare().streams == streams
    assert built(*small, "memory.stream=true").experiment.prepare().streams
    with pytest.raises(ConfigError, match="memory.stream=True: expected auto or false: dataset=sinusoid has no images"):
        built("experiment=finn2017/maml_sinusoid", "memory.stream=true")


def test_memory_settings_decide_how_tasks_are_computed():
    plan = built("experiment=finn2017/maml_sinusoid", "memory.chunk=5", "memory.remat=true").experiment.prepare()
    assert (plan.chunk, plan.variant) == (5, "inner steps rematerialised")
    plan = built("experiment=finn2017/maml_sinusoid", "memory.limit=1GB").experiment.prepare()
    assert (plan.chunk, plan.variant, plan.bytes_available) == (1, "inner steps kept", 10**9)


def test_identity_holds_what_moves_the_parameters_and_not_what_does_not():
    base = built().identity
    for same in ("steps=9", "eval_tasks=7", "checkpoint_every=3", "logger=jsonl", "resume=false", "memory.limit=1GB"):
        assert built(same).identity == base, same
    for other in ("seed=1", "way=4", "method.inner_lr=0.1", "model.filters=8", "eval_every=10", "method=fomaml"):
        assert built(other).identity != base, other
    for schedule, depends in [("cosine", True), ("linear", True), ("halving", False)]:
        ours = [built(f"optimizer.schedule={schedule}", f"steps={steps}").identity for steps in (100, 200)]
        assert (ours[0] != ours[1]) == depends, schedule


def test_protocol_states_what_moves_the_number_without_being_the_method():
    base = built().experiment.protocol
    assert base["query_shot"] == 15 and base["dataset"]["name"] == "glyphs" and len(base["dataset"]["sha256"]) == 64
    ident = protocol_id(base)
    for same in ("seed=3", "method.inner_lr=0.1", "method=fomaml", "outer_lr=0.1", "model.filters=8"):
        assert protocol_id(built(same).experiment.protocol) == ident, same
    for other in (
        "eval_query_shot=1",
        "method.query_statistics=support",
        "eval_seed=1",
        "eval_tasks=50",
        "eval_every=0",
    ):
        assert protocol_id(built(other).experiment.protocol) != ident, other


def unfinished(directory, command, *, result=False):
    (directory / ".hydra").mkdir(parents=True)
    (directory / "checkpoints").mkdir()
    (directory / ".hydra" / "overrides.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(command)))
    if result:
        (directory / "result.json").write_text(json.dumps({}))


def test_the_same_command_finds_its_unfinished_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    day = Path("outputs/2026-01-01")
    unfinished(day / "10-00-00", ["way=5"])
    unfinished(day / "11-00-00", ["way=5"], result=True)
    unfinished(day / "12-00-00", ["way=6"])
    assert run_dir(["way=5"]) == str(day / "10-00-00")
    assert run_dir(["way=6"]) == str(day / "12-00-00")
    for new in (["way=7"], ["way=5", "resume=false"], []):
        assert "2026-01-01" not in run_dir(new)


def test_runs_that_start_in_the_same_second_have_a_directory_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len({run_dir([]) for _ in range(5)}) == 5
