"""Meta-learning experiments from the command line and from Python: trained, evaluated and checked, in JAX.

`train`, `train_rl`, `load` and `export` are the Python interface, `Run` and `Learner` what they return. They are imported when
they are first used: importing `metarun` does not import JAX. `metarun.testing` holds additions to the contract.
"""

from typing import TYPE_CHECKING, Any

from metarun import errors as errors

__all__ = ["Learner", "Run", "add_config_dir", "errors", "export", "load", "train", "train_rl"]

if TYPE_CHECKING:
    from metarun.api.calls import add_config_dir as add_config_dir
    from metarun.api.export import export as export
    from metarun.api.learner import Learner as Learner
    from metarun.api.run import Run as Run
    from metarun.api.run import load as load
    from metarun.api.training import train as train
    from metarun.api.training import train_rl as train_rl
else:
    _AT = {
        "Learner": "learner",
        "Run": "run",
        "add_config_dir": "calls",
        "export": "export",
        "load": "run",
        "train": "training",
        "train_rl": "training",
    }

    def __getattr__(name: str) -> Any:
        if name not in _AT:
            raise AttributeError(f"module 'metarun' has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"metarun.api.{_AT[name]}"), name)

    def __dir__() -> list[str]:
        return [*globals(), *_AT]
