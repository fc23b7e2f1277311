"""The experiments of reinforcement learning: their figures are those of the papers, and each is what its name says."""

import pytest

from metarun.assembly.rl_run import build
from metarun.commands.reproduce import cells
from metarun.config import experiments
from metarun.config.composing import composed
from metarun.config.schema import RL
from metarun.config.search_path import conf_dir

# Pulls and arms: mean total reward of the yardsticks and RL2 (Duan et al. 2016, table 1), SNAIL and MAML (Mishra et al. 2018,
# table 3).
OF_BANDITS = ("random", "gittins", "ucb1", "thompson", "rl2", "snail", "maml")
BANDITS = {
    (10, 5): "5.0 6.6 6.7 5.7 6.7 6.6 6.5",
    (10, 10): "5.0 6.6 6.7 5.5 6.7 6.7 6.6",
    (10, 50): "5.1 6.5 6.6 5.2 6.8 6.7 6.6",
    (100, 5): "49.9 78.3 78.0 74.7 78.7 79.1 67.1",
    (100, 10): "49.9 82.8 82.4 76.7 83.5 83.5 70.1",
    (100, 50): "49.8 85.2 84.3 64.5 84.9 85.1 70.3",
    (500, 5): "249.8 405.8 405.8 402.0 401.6 408.1 -",
}
# Episodes: the same of Duan et al. 2016, table 2; last what RL2, SNAIL and MAML earn as fractions of value iteration, in Mishra
# et al. 2018, by which their SNAIL and MAML are put on the scale of the rest.
OF_MDPS = ("random", "psrl", "opsrl", "rl2")
MDPS = {
    10: "100.1 138.1 144.1 156.2 .752 .766 .563",
    25: "250.2 408.8 425.2 445.7 .859 .862 .591",
    50: "499.7 904.4 930.7 936.1 .902 .908 -",
    75: "749.9 1417.1 1449.2 1428.8 .918 .930 -",
    100: "999.4 1939.5 1973.9 1913.7 .922 .941 -",
}
# Returns after three gradient steps, and the differences that do not matter.
MAML = {
    "maml_point_navigation": (-3.23, 1.0),
    "maml_point_navigation_as_published": (-3.23, 1.0),
    "maml_cheetah_velocity": (-60.8, 1.2),
    "maml_cheetah_direction": (315.7, 6.3),
}
# Those of short versions that are tested after fewer gradient steps, two and one.
MAML_QUICK = {"maml_point_navigation_as_published_quick": -11.68}
LEARNT = ("rl2", "snail", "maml")
OF_MISHRA = ("snail", "maml")
FOLDER = conf_dir(RL) / "experiment"
NAMES = sorted(name for name in experiments.names(FOLDER) if not name.startswith("unpublished/"))


def published():
    """Name of a cell -> its figure."""
    found = {f"finn2017/{name}": value for name, (value, _) in MAML.items()}
    for (pulls, arms), row in BANDITS.items():
        for method, value in zip(OF_BANDITS, row.split(), strict=True):
            paper = "mishra2018" if method in OF_MISHRA else "duan2016"
            found[f"{paper}/{method}_bandit_{arms}_{pulls}"] = value
    for episodes, row in MDPS.items():
        *values, of_rl2, snail, maml = row.split()
        found |= {f"duan2016/{method}_mdp_{episodes}": value for method, value in zip(OF_MDPS, values, strict=True)}
        for method, value in (("snail", snail), ("maml", maml)):
            earned = value if value == "-" else float(value) / float(of_rl2) * float(values[-1])
            found[f"mishra2018/{method}_mdp_{episodes}"] = earned
    return {name: float(value) for name, value in found.items() if value != "-"}


def of_name(experiment):
    """Method, environment, and the keys of it that a name like `duan2016/rl2_bandit_5_100` or `duan2016/psrl_mdp_25` tells."""
    method, kind, *sizes = experiment.partition("/")[2].split("_")
    if method == "maml" and kind in ("bandit", "mdp"):
        method = "maml_trial"
    if kind == "bandit":
        return method, "bernoulli_bandit", {"arms": int(sizes[0]), "episodes": int(sizes[1])}
    if kind == "mdp":
        return method, "tabular_mdp", {"episodes": int(sizes[0])}
    return method, "_".join([kind, sizes[0]]), {}


def test_the_figures_are_those_of_the_papers():
    known = {named.name: named for named in cells() if named.part == RL}
    whole = {name: named for name, named in known.items() if named.cell.quick_of is None}
    assert {name: named.published.value for name, named in whole.items()} == {
        name: pytest.approx(value, abs=0.05 if name.startswith("mishra2018") and "mdp" in name else 0)
        for name, value in published().items()
    }
    for name, named in whole.items():
        _, margin = MAML.get(name.partition("/")[2], (None, pytest.approx(0.02 * published()[name], rel=0.05)))
        assert named.cell.margin == margin, name
    for name in known.keys() - whole.keys():
        quick = known[name]
        of = whole[quick.cell.quick_of]
        assert name == f"{of.name}_quick"
        assert quick.cell.margin == of.cell.margin
        if figure := MAML_QUICK.get(name.partition("/")[2]):
            assert quick.published.value == figure
        else:
            assert quick.cell.published == of.cell.published


@pytest.mark.parametrize("experiment", [name for name in NAMES if name.partition("/")[2].startswith(LEARNT)])
def test_what_learns_is_built_and_what_its_name_says(experiment):
    method, env, keys = of_name(experiment)
    config, choices = composed([f"experiment={experiment}"], RL)
    assert (choices["method"], choices["env"]) == (method, env)
    assert {key: config.env[key] for key in keys} == keys
    if "cheetah" not in env:  # which needs an extra
        assert build(config, choices).experiment.tasks_per_step == config.meta_batch_size


def test_the_yardsticks_are_what_their_names_say():
    composes = set()
    for name in NAMES:
        method, env, keys = of_name(name)
        if name.partition("/")[2].startswith(LEARNT):
            continue
        node = experiments.served(FOLDER, name)
        if node.pop("cell").get("quick_of"):
            whole = name.removesuffix("_quick")
            assert set(node) == {"defaults", "eval_tasks"} and node["defaults"] == [f"/experiment/{whole}", "_self_"]
            continue
        assert node == {"defaults": [{"override /env": env}, {"override /method": method}, "_self_"], "env": keys}
        if (method, env) not in composes:  # the others differ from it in numbers alone
            composes.add((method, env))
            assert build(*composed([f"experiment={name}"], RL)).facts["method"] == method
    assert len(composes) == 7
