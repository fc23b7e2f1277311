"""Command lines drawn at random end as they should; and the judge of that sees what is wrong."""

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fuzz_commands import COMMANDS, Command, Ended, drawn, faults

SCRIPT = Path(__file__).parents[1] / "scripts" / "fuzz_commands.py"
MISTAKE = Command("metarun", ["way=x"], mistake=True)
GOOD = Ended(2, "", "metarun: way=x: expected a whole number, 1 or more.\n", ())


@pytest.mark.slow
def test_command_lines_end_as_they_should():
    # In a process of its own: what has computed with JAX cannot be forked.
    command = [sys.executable, SCRIPT, "--count", "40", "--seed", "1", "--seconds", "120"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 command lines" in done.stdout and "0 findings" in done.stdout


def test_every_command_and_every_kind_of_setting_is_drawn():
    commands = [drawn(random.Random(f"0 {number}")) for number in range(400)]
    assert commands[:20] == [drawn(random.Random(f"0 {number}")) for number in range(20)]
    assert {each.name for each in commands} == {*COMMANDS}
    assert min(Counter(each.name for each in commands).values()) >= 10
    assert len({(each.name, *each.arguments) for each in commands}) > 360
    words = [argument for each in commands for argument in each.arguments]
    for part in ("=nan", "=inf", "=null", "~", "+", "++", "${", "[1,2", "ü", "'", "experiment=nope", "-m", "seeds=2"):
        assert any(part in word for word in words), part
    assert any(word.split("=")[0] == other.split("=")[0] for each in commands for word, other in pairs(each.arguments))
    assert any(each.mistake for each in commands) and not all(each.mistake for each in commands)


def pairs(arguments):
    return [(one, other) for n, one in enumerate(arguments) for other in arguments[n + 1 :]]


@pytest.mark.parametrize(
    "ended, word",
    [
        (GOOD._replace(code=None), "in time"),
        (GOOD._replace(code=0), "exits with 0"),
        (GOOD._replace(code=-11), "exit code -11"),
        (GOOD._replace(changed=["r1/.hydra/config.yaml"]), "leaves or changes r1/.hydra/config.yaml"),
        (GOOD._replace(err="Traceback (most recent call last):\n" + GOOD.err), "traceback"),
        (GOOD._replace(err="Error executing job with overrides: ['way=x']\n" + GOOD.err), "Hydra's line"),
        (GOOD._replace(err=GOOD.err + "    full_key: way\n"), "OmegaConf's text"),
        (GOOD._replace(err="/a/b.py:7: UserWarning: odd\n" + GOOD.err), "warning"),
        (GOOD._replace(err="way is wrong\n" + GOOD.err), "a line is not ours: way is wrong"),
        (GOOD._replace(err=""), "no message"),
    ],
)
def test_what_is_wrong_is_found(ended, word):
    assert faults(MISTAKE, GOOD) == []
    assert word in "; ".join(faults(MISTAKE, ended))


def test_what_is_right_or_has_begun_is_no_finding():
    command = MISTAKE._replace(mistake=False)
    assert faults(command, GOOD._replace(code=0, err="", changed=["outputs"])) == []
    begun = "one at a time; 4 MB a device; compiled in 0.1 s\nmetarun: The loss is nan in step 1.\n"
    assert faults(command, GOOD._replace(err=begun, changed=["outputs"])) == []
    said = "usage: metarun-report [-h]\nmetarun-report: error: unrecognized arguments: --nope\n"
    assert faults(Command("metarun-report", ["--nope"], True), GOOD._replace(err=said)) == []
