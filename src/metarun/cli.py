"""Console entry points. A user's mistake ends in one message and a non-zero exit, and `--help` does not load JAX."""

import difflib
import os
import re
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.config import MemoryConfig, RunConfig, conf_dir, register
from metarun.errors import MetarunError

_FAILED = 1
_MISTAKE = 2


def main() -> None:
    """`metarun`: trains and evaluates a meta-learner, as the command line composes it."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here, where they become messages
    register()
    sys.exit(_told(hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(_train)))


def _told(entry) -> int:
    """Runs `entry` and returns its exit code, having told the user in one message what went wrong."""
    try:
        entry()
    except MetarunError as error:
        print(f"metarun: {error}", file=sys.stderr)
        return getattr(error, "exit_code", _MISTAKE)
    except (HydraException, OmegaConfBaseException) as error:
        print(f"metarun: {_explained(error)}", file=sys.stderr)
        return _MISTAKE
    except KeyboardInterrupt:
        print("metarun: interrupted before training began; nothing was lost.", file=sys.stderr)
        return 130
    except OSError as error:
        print(
            f"metarun: {error.filename or ''}: {error.strerror or error}. Is hydra.run.dir writable?", file=sys.stderr
        )
        return _FAILED
    return 0


def _explained(error: Exception) -> str:
    """Hydra's message; for a key that does not exist, the one that was probably meant."""
    causes = [error]
    while isinstance(causes[-1].__cause__, (HydraException, OmegaConfBaseException)):
        causes.append(causes[-1].__cause__)
    message = "\n".join(dict.fromkeys(line for cause in causes for line in str(cause).splitlines()))
    unknown = re.search(r"Could not override '([\w./]+)'", message)
    if unknown and ("not in" in message or "No match" in message):
        key = unknown.group(1)
        near = difflib.get_close_matches(key, _known_keys(), n=3)
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        return f"{key}: there is no such key for this choice.{meant} `metarun --help` lists the main keys and `--cfg job` all."
    return message


def _known_keys() -> list[str]:
    """Every key of `RunConfig` and of the groups' YAML files."""
    keys = [*RunConfig.__annotations__, *(f"memory.{key}" for key in MemoryConfig.__annotations__)]
    for file in conf_dir().glob("*/*.yaml"):
        group = file.parent.name
        node = OmegaConf.load(file)
        node = node.get(group, node)  # one that sets keys of the run as well has its own under its name
        keys += [f"{group}.{key}" for key in node if key != "defaults" and not str(key).startswith("_")]
    return sorted(set(keys))


def _train(config: DictConfig) -> None:
    from pathlib import Path

    from metarun import backend
    from metarun.data.cache import cache_dir

    backend.set_up(cache_dir() / "compiled")

    from rich.console import Console

    from metarun import runner
    from metarun.build import build
    from metarun.report import outcome

    console = Console()
    node = HydraConfig.get()
    directory = Path(node.runtime.output_dir)
    run = build(config, dict(node.runtime.choices))
    console.print(outcome.heading(run.facts, directory), highlight=False, soft_wrap=True)
    result = runner.run(
        run.experiment,
        run.settings,
        directory,
        facts=run.facts,
        identity=run.identity,
        logger=run.logger,
        draw=outcome.pictures(run.experiment),
        console=Console(stderr=True),
    )
    console.print(outcome.summary(result, directory))
