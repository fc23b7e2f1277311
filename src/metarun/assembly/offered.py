"""What metarun offers to a factory, by the name of a parameter.

A factory is what a choice of a group calls, such as `maml` for `method=maml`. Its other parameters are the keys of the
choice: `method.inner_lr`. A factory takes of these tables what it has a parameter for. What is in neither table, and has no
default and no key, is an error.
"""

from metarun.config.schema import FEW_SHOT, RL

# Scalars of the run, which a factory of any group may ask for.
SCALARS = {
    "way": "classes of a task",
    "shot": "support examples of each class",
    "query_shot": "query examples of each class, in training",
    "eval_query_shot": "query examples of each class in validation and test; None: as in training",
    "train_way": "classes of a training task; None: as in the test",
    "train_shot": "support examples of each class of a training task; None: as in the test",
    "steps": "outer steps",
    "meta_batch_size": "tasks of an outer step",
    "outer_lr": "learning rate of the outer optimiser",
    "precision": "of products of float32 arrays, one of `system.backend.PRECISIONS`",
    "seed": "of the run",
    "eval_seed": "of the validation and test tasks",
}
_LOGGER = {
    "directory": "that of the run",
    "resume_step": "the step at which the run begins or continues",
    "settings": "key -> value, the run's configuration, flat: method, method.inner_lr, way, seed, ...",
}
# Objects, by the command and the group; the groups of a run, the most telling first.
OFFERED = {
    FEW_SHOT: {
        "method": {
            "model": "the chosen network, with `num_outputs` outputs: a `types.Model`",
            "encoder": "the same network without its last layer: a `types.Model`",
            "objective": "of the data: classification or regression",
            "num_outputs": "classes of a task, or numbers of an answer",
            "num_train_classes": "classes of meta-training in all",
            "remat": "whether inner steps are computed again in the backward pass, which takes less memory",
        },
        "model": {
            "num_outputs": "outputs of the last layer; None: no last layer, features are the output",
        },
        "dataset": {
            "test_only": "whether test tasks alone are wanted, so that training classes may be too few",
        },
        "optimizer": {},
        "logger": _LOGGER,
    },
    RL: {
        "method": {
            "environment": "the distribution over tasks: an `rl.environment.Environment`",
            "optimizer": "factory of the outer optimiser, called with the `steps` that it will take in all",
            "layout": "where tasks are computed: a `compiled.task_map.Layout`",
        },
        "env": {},
        "optimizer": {},
        "logger": _LOGGER,
    },
}
