"""Directories of runs as the runner leaves them, for reports: written in a moment, nothing is trained.

python tests/many_runs.py DIR 200    # to look at
"""

import io
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

METHODS = ("maml", "protonet", "snail", "reptile", "anil")


def write_run(
    directory,
    *,
    method="maml",
    way=5,
    shot=1,
    seed=0,
    value=0.9,
    overrides=(),
    inner_steps=3,
    settings=None,
    **result,
):
    """Writes a finished run; `settings` are further keys of it, and `result` changes what its result.json says."""
    (directory / ".hydra").mkdir(parents=True)
    config = {"dataset": {"source": str(directory)}, "method": {"name": method, "eval_inner_steps": inner_steps}}
    config |= {"way": way, "shot": shot, "seed": seed, **(settings or {})}
    (directory / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    choices = {"method": method, "dataset": "omniglot", "hydra/launcher": "basic"}
    of_hydra = {"hydra": {"runtime": {"choices": choices}}}
    (directory / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(of_hydra))
    own = [f"method={method}", f"way={way}", f"shot={shot}", f"seed={seed}", *overrides]
    (directory / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(own))
    draw = np.random.default_rng(seed)
    lines = [
        {
            "step": step,
            "train/loss": 1 / step,
            "train/query/accuracy": value - 0.1 / step + 0.01 * draw.standard_normal(),
            **({"val/accuracy": value - 10 / step, "val/ci95": 0.01} if step % 500 == 0 else {}),
        }
        for step in range(10, 3010, 10)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    protocol = {
        "dataset": {"name": "omniglot", "split": "maml", "rotations": {"test": True}},
        "method": {"query_statistics": "query", "eval_inner_steps": inner_steps},
        "eval_seed": 0,
        "way": way,
        "shot": shot,
        "query_shot": 15,
        "eval_tasks": 600,
    }
    (directory / "result.json").write_text(
        json.dumps(
            {
                "metric": "accuracy",
                "value": value,
                "ci95": 0.003,
                "num_tasks": 600,
                "method": method,
                "dataset": "omniglot",
                "way": way,
                "shot": shot,
                "query_shot": 15,
                "published": {"finn2017": {"value": 0.987, "ci95": 0.004, "source": "table 1", "note": ""}},
                "seed": seed,
                "device": "2 x AMD EPYC",
                "protocol": protocol,
                "protocol_id": f"{inner_steps:016x}",
                "checks": {"query_order": {"passed": True, "value": 0.0}},
                "steps": 3000,
                "seconds": 100.0 + seed,
                **result,
            }
        )
    )
    (directory / "plots").mkdir()
    (directory / "plots" / "gallery.png").write_bytes(picture(seed % 8))
    return directory


@cache
def picture(seed):
    """A PNG of half a gallery's width, which is read four times as fast and on the page is as large."""
    noise, stream = np.random.default_rng(seed).integers(0, 255, (60, 90, 3), np.uint8), io.BytesIO()
    Image.fromarray(noise).resize((900, 600), Image.BICUBIC).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def write_runs(root, number):
    """Writes a sweep of `number` runs of several methods, settings and seeds."""
    for k in range(number):
        write_run(
            root / "multirun" / str(k),
            method=METHODS[k % 5],
            way=(5, 20)[k // 5 % 2],
            shot=(1, 5)[k // 10 % 2],
            seed=k,
            value=0.6 + 0.39 * ((37 * k) % number) / number,
            inner_steps=(1, 3, 5)[k // 20 % 3],
        )
    return root


if __name__ == "__main__":
    write_runs(Path(sys.argv[1]), int(sys.argv[2]))
