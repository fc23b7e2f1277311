"""The files of experiments: families, short versions, names, and what is said of a mistaken or former one."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from metarun.config import experiments
from metarun.config.composing import composed, register
from metarun.config.hydra_versions import BASE
from metarun.config.mistakes import explained
from metarun.config.schema import FEW_SHOT, RL
from metarun.config.search_path import conf_dir

FOLDER = conf_dir(FEW_SHOT) / "experiment"
FAMILY = """\
# @package _global_
defaults: [{override /method: protonet}, _self_]
cell: {published: {source: table 1}, margin: 0.01, differs: [words]}
quick: {steps: 5, cell: {differs: []}}
cells:
  fast_5w1s: {way: 5, cell: {published: {value: 0.9, ci95: 0.1}}}
  fast_5w5s: {way: 5, shot: 5, cell: {published: {value: 0.8}}, quick: {shot: 4}}
  fast_20w1s: {defaults: [mine/fast_5w1s, _self_], way: 20, cell: {published: {value: 0.7}}, quick: mine/fast_5w1s_quick}
"""


@pytest.fixture
def folder(tmp_path):
    """A folder `experiment` with a family, in a folder of a paper, and a file of its own beside it."""
    (tmp_path / "experiment" / "mine").mkdir(parents=True)
    (tmp_path / "experiment" / "mine" / "fast.yaml").write_text(FAMILY)
    (tmp_path / "experiment" / "plain.yaml").write_text("# @package _global_\nsteps: 3\nquick: {steps: 2}\n")
    return tmp_path / "experiment"


def from_outside(folder, *overrides):
    """What a command composes that names the folder above with --config-dir."""
    register()
    with initialize_config_dir(str(conf_dir()), **BASE):
        return compose("config", [f"hydra.searchpath=[file://{folder.parent}]", *overrides])


def test_names_are_those_of_files_tables_and_short_versions(folder):
    of_family = [f"mine/fast_{sizes}{quick}" for sizes in ("5w1s", "5w5s", "20w1s") for quick in ("", "_quick")]
    assert sorted(experiments.names(folder)) == sorted([*of_family, "plain", "plain_quick"])
    for part in (FEW_SHOT, RL):
        names = list(experiments.names(conf_dir(part) / "experiment"))
        assert names and all(experiments.served(conf_dir(part) / "experiment", name) is not None for name in names)


def test_a_cell_of_a_family_has_what_they_share_and_its_own(folder):
    assert experiments.served(folder, "mine/fast_5w5s") == {
        "defaults": [{"override /method": "protonet"}, "_self_"],
        "cell": {
            "published": [{"paper": "mine", "source": "table 1", "value": 0.8}],
            "margin": 0.01,
            "differs": ["words"],
        },
        "way": 5,
        "shot": 5,
    }
    assert experiments.served(folder, "mine/fast_20w1s")["defaults"] == ["/experiment/mine/fast_5w1s", "_self_"]


def test_a_short_version_takes_the_figure_of_its_cell_and_stands_on_it(folder):
    figure = {"paper": "mine", "source": "table 1", "value": 0.8}
    assert experiments.served(folder, "mine/fast_5w5s_quick") == {
        "defaults": ["/experiment/mine/fast_5w5s", "_self_"],
        "steps": 5,
        "shot": 4,
        "cell": {"quick_of": "mine/fast_5w5s", "published": [figure], "margin": 0.01},
    }
    assert experiments.served(folder, "plain_quick") == {"defaults": ["/experiment/plain", "_self_"], "steps": 2}


def test_a_short_version_may_be_the_run_of_another(folder):
    assert experiments.served(folder, "mine/fast_20w1s_quick") == {
        "defaults": ["/experiment/mine/fast_5w1s_quick", "_self_"],
        "cell": {
            "quick_of": "mine/fast_20w1s",
            "published": [{"paper": "mine", "source": "table 1", "value": 0.7}],
            "margin": 0.01,
        },
    }
    assert experiments.run_of(folder, "mine/fast_20w1s_quick") == "mine/fast_5w1s_quick"
    assert experiments.run_of(folder, "mine/fast_5w1s_quick") == "mine/fast_5w1s_quick"


@pytest.mark.parametrize(
    "name", ["mine/fast", "mine/fast_quick", "mine/other", "fast_5w1s", "plain_quick_quick", "mine"]
)
def test_other_names_are_no_experiments(folder, name):
    assert experiments.served(folder, name) is None


def test_hydra_composes_those_of_a_folder_from_outside(folder):
    config = from_outside(folder, "experiment=mine/fast_5w5s_quick")
    assert (config.way, config.shot, config.steps) == (5, 4, 5) and config.method._target_.endswith("protonet")
    assert OmegaConf.to_container(config.cell)["published"] == [{"paper": "mine", "source": "table 1", "value": 0.8}]
    assert from_outside(folder, "experiment=mine/fast_20w1s").way == 20
    assert from_outside(folder, "experiment=plain_quick", "steps=7").steps == 7
    assert from_outside(folder, "experiment=finn2017/maml_sinusoid").steps == 70000


@pytest.mark.parametrize(
    "name, words",
    [
        ("maml_omniglot_5w1s", "It is finn2017/maml_omniglot_5w1s."),
        (
            "maml_omniglot_20w1s_quick",
            "It is finn2017/maml_omniglot_20w1s_quick or raghu2020/maml_omniglot_20w1s_quick.",
        ),
        ("nichol2018/maml_omniglot_5w1s", "It is finn2017/maml_omniglot_5w1s."),
        ("finn2017/maml_omniglt_5w1s", "Did you mean finn2017/maml_omniglot_5w1s"),
        ("maml_omniglt_5w1s", "finn2017/maml_omniglot_5w1s"),
        ("finn2017/maml_omniglot", "finn2017/maml_omniglot_5w5s"),
        ("xyz", "there is no such experiment. There are "),
    ],
)
def test_a_mistaken_or_former_name_gets_the_right_one_named(name, words):
    with pytest.raises(HydraException) as raised:
        composed([f"experiment={name}"])
    said = explained(raised.value, FEW_SHOT, [f"experiment={name}"])
    assert said.startswith(f"experiment={name}: there is no such experiment. ") and words in said


def test_one_that_an_experiment_from_outside_stands_on_is_named_too(folder):
    (folder / "mine" / "old.yaml").write_text("# @package _global_\ndefaults: [maml_sinusoid, _self_]\nsteps: 1\n")
    with pytest.raises(HydraException) as raised:
        from_outside(folder, "experiment=mine/old")
    assert "It is finn2017/maml_sinusoid." in explained(raised.value, FEW_SHOT, ["experiment=mine/old"])


@pytest.mark.parametrize(
    "part, name",
    [
        (FEW_SHOT, "nichol2018/fomaml_omniglot_20w1s"),
        (FEW_SHOT, "nichol2018/reptile_omniglot_5w5s_transductive_quick"),
        (FEW_SHOT, "finn2017/maml_sinusoid_1_step"),
        (RL, "unpublished/long_trials_snail_mdp_25"),
        (RL, "duan2016/ucb1_bandit_50_100"),
    ],
)
def test_a_choice_is_told_as_it_is_composed(part, name):
    _, choices = composed([f"experiment={name}"], part)
    for group in ("method", "optimizer", {FEW_SHOT: "dataset", RL: "env"}[part]):
        told = experiments.choice(conf_dir(part) / "experiment", name, group)
        assert told in (choices[group], None)
        if told is None:  # the command's own
            assert choices[group] == composed([], part)[1][group]
