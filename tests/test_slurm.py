"""On a real Slurm, where one answers: sweeps, jobs that are queued again, jobs whose time is up, jobs of two processes."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from test_campaign import of_own_cells
from test_cli import METARUN, metarun
from test_plugins import TINY, folder  # noqa: F401 - a fixture
from test_processes import ARGUMENTS, assert_same_arrays, await_checkpoint

from metarun.trust import measured

RUN = ["method=protonet", *ARGUMENTS]
TEMPLATES = Path(__file__).parents[1] / "scripts" / "slurm"


def answers():
    if shutil.which("sinfo") is None:
        return False
    found = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False)
    return any(state in found.stdout for state in ("idle", "mixed", "allocated"))


pytestmark = [pytest.mark.slow, pytest.mark.skipif(not answers(), reason="no Slurm answers on this machine")]


@pytest.fixture(scope="module")
def environment():
    """Of jobs and of what they are compared with: one device, and compiled programs at hand."""
    return {
        "JAX_NUM_CPU_DEVICES": "1",
        "PATH": f"{METARUN.parent}:{os.environ['PATH']}",
    }


def slurm(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def submit(template, *arguments, cwd, environment, options=()):
    """Returns the number of a job of one of the templates."""
    command = ["sbatch", "--parsable", "--mem=3G", *options, TEMPLATES / template, *arguments]
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def begin(arguments, cwd, environment):
    """Starts a sweep, whose words go to the file `said`."""
    with (cwd / "said").open("w") as said:
        return subprocess.Popen(
            [METARUN, *arguments], cwd=cwd, env={**os.environ, **environment}, stdout=said, stderr=said
        )


def hurry(job=None, wait=20, since={}):  # noqa: B006
    """Starts what waits because it was queued again, for which Slurm would take two minutes.

    Not at once: word that the first attempt has ended may reach Slurm late, and then ends the second.
    """
    for line in slurm("squeue", "-h", "-t", "PENDING", "-o", "%i %r").splitlines():
        number, reason = line.split(maxsplit=1)
        if reason == "BeginTime" and job in (None, number.split("_")[0]):
            if time.monotonic() - since.setdefault(number, time.monotonic()) > wait:
                subprocess.run(["scontrol", "update", f"JobId={number}", "StartTime=now"], check=False)
        else:
            since.pop(number, None)


def state_of(job):
    """What Slurm says of a job, for the message of a test that fails."""
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=False)
    return shown.stdout + shown.stderr


def await_words(words, log, job, timeout=900):
    """Waits until the log of a job says `words`."""
    deadline = time.monotonic() + timeout
    while not (log.exists() and words in log.read_text()):
        assert time.monotonic() < deadline, state_of(job) + (log.read_text() if log.exists() else "no log")
        hurry(job)
        time.sleep(0.5)


def await_end(job, timeout=900):
    """Waits until a job has left the queue. One that is being queued again looks, for a moment, as if it had."""
    deadline = time.monotonic() + timeout
    states = ["PENDING"]
    while any(state not in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT") for state in states):
        assert time.monotonic() < deadline
        hurry(job)
        time.sleep(1)
        lines = [line.split() for line in slurm("squeue", "-h", "-t", "all", "-o", "%F %T").splitlines()]
        states = [state for number, state in lines if number == job]


def await_sweep(sweep, job=None, timeout=1500):
    """Waits until the command of a sweep has ended."""
    deadline = time.monotonic() + timeout
    try:
        while sweep.poll() is None:
            assert time.monotonic() < deadline, slurm("squeue")
            hurry(job)
            time.sleep(1)
    finally:
        sweep.kill()


def numbers(directory):
    """What a run has logged and found, but for how long it took."""
    timed = ("seconds", "tasks_per_second", "compile_seconds", "plan")
    lines = [json.loads(line) for line in (Path(directory) / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((Path(directory) / "result.json").read_text())
    return [{key: value for key, value in entry.items() if key not in timed} for entry in [*lines, result]]


def assert_same_run(directory, expected):
    assert_same_arrays(directory, expected)
    assert numbers(directory) == numbers(expected)


def test_a_sweep_of_six_jobs_one_of_them_queued_again(tmp_path, environment):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    points = ["-m", *RUN, "steps=100", "seed=0,1,2,3,4,5"]
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.mem_gb=3", "hydra.launcher.timeout_min=20"]
    sweep = begin([*points, *launcher, "hydra.sweep.dir=jobs"], tmp_path, environment)
    await_checkpoint(tmp_path / "jobs" / "0", sweep)
    (job,) = (path.name.removesuffix("_0") for path in (tmp_path / "jobs" / ".submitit").glob("*_0"))
    slurm("scontrol", "requeue", f"{job}_0")
    await_sweep(sweep, job)
    assert sweep.returncode == 0, (tmp_path / "said").read_text()
    said = "".join(path.read_text() for path in (tmp_path / "jobs" / ".submitit" / f"{job}_0").glob("*.err"))
    assert "Stopped by SIGTERM" in said and "Resuming at step" in said

    local = metarun(*points, "hydra.sweep.dir=local", cwd=tmp_path, fresh=True, **environment)
    assert local.returncode == 0, local.stderr
    for seed in range(6):
        assert_same_run(tmp_path / "jobs" / str(seed), tmp_path / "local" / str(seed))


def test_a_sweep_of_additions_from_outside(folder, environment):  # noqa: F811
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    points = ["-m", "--config-dir=conf", *TINY, "seed=0,1"]
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.mem_gb=3", "hydra.launcher.timeout_min=20"]
    sweep = begin([*points, *launcher, "hydra.sweep.dir=jobs"], folder, environment)
    await_sweep(sweep)
    assert sweep.returncode == 0, (folder / "said").read_text()
    local = metarun(*points, "hydra.sweep.dir=local", cwd=folder, fresh=True, **environment)
    assert local.returncode == 0, local.stderr
    for seed in ("0", "1"):
        assert_same_run(folder / "jobs" / seed, folder / "local" / seed)


def command_of(path):
    """The words of a process's command line; [""] if it has just ended."""
    try:
        return path.read_text(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return [""]


def halt(words):
    """Stops the process of a job, found by `words` of its command line, until Slurm signals that its time is up.

    Then its time is up before its steps are, however fast the machine.
    """
    (process,) = (
        path.parent
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if "python" in (command := command_of(path))[0]
        and command[2:4] == ["-m", "submitit.core._submit"]
        and words in command[-1]
    )
    os.kill(int(process.name), signal.SIGSTOP)


def test_a_job_of_a_sweep_whose_time_is_up_goes_on_in_the_next(tmp_path, environment):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    points = ["-m", *RUN, "steps=200"]
    # The signal comes after a minute: a slow machine needs half of it to get as far as to heed it.
    limits = ["hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=60", "hydra.launcher.mem_gb=3"]
    launcher = ["hydra/launcher=submitit_slurm", *limits]
    sweep = begin([*points, *launcher, "hydra.sweep.dir=jobs"], tmp_path, environment)
    await_checkpoint(tmp_path / "jobs" / "0", sweep)
    halt(str(tmp_path))
    await_sweep(sweep)
    assert sweep.returncode == 0, (tmp_path / "said").read_text()
    said = "".join(path.read_text() for path in (tmp_path / "jobs" / ".submitit").glob("*/*.err"))
    assert "Stopped by SIGUSR2" in said and "Resuming at step" in said
    local = metarun(*points, "hydra.sweep.dir=local", cwd=tmp_path, fresh=True, **environment)
    assert local.returncode == 0, local.stderr
    assert_same_run(tmp_path / "jobs" / "0", tmp_path / "local" / "0")


def test_the_template_of_a_job_has_it_queued_again(tmp_path, environment):
    points = [*RUN, "steps=200"]
    job = submit("job.sbatch", *points, cwd=tmp_path, environment=environment)
    directory = tmp_path / "outputs" / f"slurm-{job}"
    deadline = time.monotonic() + 900
    while not (directory / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    slurm("scancel", "--signal=USR1", job)  # what Slurm sends before the time is up
    await_words("Resuming at step", tmp_path / f"slurm-{job}.log", job)
    await_end(job)
    said = (tmp_path / f"slurm-{job}.log").read_text()
    assert "Stopped by SIGUSR1" in said, said
    local = metarun(*points, "hydra.run.dir=local", cwd=tmp_path, fresh=True, **environment)
    assert local.returncode == 0, local.stderr
    assert_same_run(directory, tmp_path / "local")


def test_the_template_of_an_array_and_what_is_cancelled_stays_so(tmp_path, environment):
    points = [*RUN, "steps=100000"]
    job = submit("array.sbatch", *points, cwd=tmp_path, environment=environment, options=["--array=0-1"])
    for seed in ("0", "1"):
        deadline = time.monotonic() + 900
        while not (tmp_path / "outputs" / f"slurm-{job}" / seed / "metrics.jsonl").exists():
            assert time.monotonic() < deadline
            time.sleep(0.2)
    slurm("scancel", job)
    await_end(job)
    time.sleep(5)
    assert job not in slurm("squeue", "-h", "-o", "%F")
    assert "Stopped by SIGTERM" in (tmp_path / f"slurm-{job}_1.log").read_text()


def test_the_template_of_several_hosts_trains_together(tmp_path, environment):
    job = submit(
        "multihost.sbatch",
        *ARGUMENTS,
        cwd=tmp_path,
        environment=environment,
        options=["--nodes=1", "--ntasks=2", "--ntasks-per-node=2"],
    )
    await_end(job)
    directory = tmp_path / "outputs" / f"slurm-{job}"
    assert (directory / "result.json").exists(), (tmp_path / f"slurm-{job}.log").read_text()
    together = {**environment, "JAX_NUM_CPU_DEVICES": "2"}
    local = metarun(*ARGUMENTS, "hydra.run.dir=local", cwd=tmp_path, fresh=True, **together)
    assert local.returncode == 0, local.stderr
    assert_same_run(directory, tmp_path / "local")


def test_two_jobs_share_the_cells_of_a_campaign(tmp_path, environment):
    options = ["--array=0-1", f"--output={tmp_path}/slurm-%A_%a.log"]
    checkout = TEMPLATES.parents[1]
    job = submit("campaign.sbatch", *of_own_cells(tmp_path), cwd=checkout, environment=environment, options=options)
    await_end(job)
    said = [(tmp_path / f"slurm-{job}_{task}.log").read_text() for task in (0, 1)]
    assert all("begun at step 0" in words and "exit code" not in words for words in said), said
    assert [*measured.read(tmp_path / "table.csv")] == ["mine/small_a", "mine/small_b", "mine/small_c"], said
