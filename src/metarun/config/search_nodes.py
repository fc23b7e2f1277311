"""The keys of a search by Optuna, `hydra/sweeper=optuna`, as Hydra composes them. Importing this file does not import Optuna.

A sampler and a pruner are a class of Optuna's by its `_target_`, with the keys that its constructor takes; a key that is
null is left to Optuna. The names of keys and of samplers are those of the plugin hydra-optuna-sweeper, whose place this takes.
"""

from typing import Any

from metarun.config.hydra_versions import store

SEARCH = "hydra_plugins.metarun_sweeps.Search"
_SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "tpe": (
        "TPESampler",
        {
            "n_startup_trials": 10,
            "n_ei_candidates": 24,
            "multivariate": False,
            "group": False,
            # Whether a trial that still runs counts as a bad one, so that the next is another; null: where several run at once.
            "constant_liar": None,
        },
    ),
    "random": ("RandomSampler", {}),
    "grid": ("GridSampler", {}),
    "cmaes": ("CmaEsSampler", {"sigma0": None, "n_startup_trials": 1, "popsize": None, "with_margin": None}),
    "gp": ("GPSampler", {"n_startup_trials": 10, "deterministic_objective": False}),
    "qmc": ("QMCSampler", {"qmc_type": "sobol", "scramble": False}),
    "nsgaii": ("NSGAIISampler", {"population_size": 50, "mutation_prob": None, "crossover_prob": 0.9}),
}
_PRUNERS: dict[str, tuple[str, dict[str, Any]]] = {
    "median": ("MedianPruner", {"n_startup_trials": 5, "n_warmup_steps": 0, "interval_steps": 1, "n_min_trials": 1}),
    "percentile": ("PercentilePruner", {"percentile": 25.0, "n_startup_trials": 5, "n_warmup_steps": 0}),
    "halving": ("SuccessiveHalvingPruner", {"min_resource": "auto", "reduction_factor": 4}),
    "hyperband": ("HyperbandPruner", {"min_resource": 1, "max_resource": "auto", "reduction_factor": 3}),
    "none": ("NopPruner", {}),
}


def register() -> None:
    """Tells Hydra of the search, its samplers and its pruners, whether or not the plugin of the same names is installed."""
    node = {
        "defaults": [{"sampler": "tpe"}, {"pruner": "median"}],
        "_target_": SEARCH,
        # Nothing in it is made by Hydra: of which versions some would make the sampler and some not.
        "_recursive_": False,
        "direction": "maximize",
        "storage": None,
        "study_name": None,
        "n_trials": 20,
        "n_jobs": 1,
        "params": None,
    }
    store("optuna", node, "hydra/sweeper")
    for name, (kind, keys) in _SAMPLERS.items():
        store(name, {"_target_": f"optuna.samplers.{kind}", "seed": None, **keys}, "hydra/sweeper/sampler")
    for name, (kind, keys) in _PRUNERS.items():
        store(name, {"_target_": f"optuna.pruners.{kind}", **keys}, "hydra/sweeper/pruner")
