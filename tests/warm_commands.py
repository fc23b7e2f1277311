"""Console commands, each in a process of its own, forked from one that has imported what they import.

A command so started differs from the console script in that it need not import anything first, which takes seconds. It has
its own arguments, directory, environment, streams and exit code. The server is started when it is first asked, and ends
with the tests; it starts nothing of JAX, which could not be forked.
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

ENTRIES = {"metarun": "main"} | {
    f"metarun-{name}": f"{name}_main"
    for name in ("compare", "data", "eval", "export", "predict", "replay", "report", "reproduce", "rl")
}


class Started:
    """A command that runs: of `subprocess.Popen`, what the tests use."""

    def __init__(self, command, arguments, *, cwd=".", env=None):
        self.args, self.returncode = [command, *map(str, arguments)], None
        self._connection, theirs = socket.socketpair()
        out, err = os.pipe(), os.pipe()
        request = json.dumps([self.args, os.path.abspath(cwd), dict(os.environ) if env is None else env]).encode()
        with theirs:
            socket.send_fds(_server()[0], [b"."], [theirs.fileno(), out[1], err[1]])
        self._connection.sendall(len(request).to_bytes(8, "big") + request)
        os.close(out[1])
        os.close(err[1])
        self.stdout, self.stderr = open(out[0], encoding="utf-8"), open(err[0], encoding="utf-8")
        self.pid = self._answer()

    def send_signal(self, number):
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def _answer(self):
        """The next number that the server says, byte by byte, so that what comes later is left in the socket."""
        text = b""
        while not text.endswith(b"\n"):
            byte = self._connection.recv(1)
            if not byte:
                raise RuntimeError(f"Commands can be forked no longer: {_server()[1].stdout.read()}")
            text += byte
        return int(text)

    def poll(self):
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self):
        if self.returncode is None:
            self.returncode = self._answer()
            self._connection.close()
        return self.returncode

    def communicate(self, timeout=900):
        """Returns what it says on stdout and stderr, once it has ended; after `timeout` seconds it is killed."""
        late = threading.Timer(timeout, self.kill)
        late.start()
        said = []
        thread = threading.Thread(target=lambda: said.append(self.stderr.read()))
        thread.start()
        with self.stdout:
            out = self.stdout.read()
        thread.join()
        self.stderr.close()
        self.wait()
        if not late.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout, out, said[0])
        late.cancel()
        return out, said[0]


def ran(command, *arguments, cwd, timeout=900, env=None):
    """Runs a command to its end. Returns what `subprocess.run` returns."""
    started = Started(command, arguments, cwd=cwd, env=env)
    out, err = started.communicate(timeout)
    return subprocess.CompletedProcess(started.args, started.returncode, out, err)


@cache
def _server():
    """The server, which is started by the first that asks, and the socket that asks it; when that is closed, it ends."""
    ours, theirs = socket.socketpair()
    # What JAX takes from the environment when it is imported is each command's own.
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    with theirs:
        # Pipes, as a command has; what is said in them is lost, but for the reason of an end.
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())], env=env, pass_fds=[theirs.fileno()], **streams
        )
    atexit.register(_end, ours, started)
    return ours, started


def _end(ours, started):
    ours.close()
    started.communicate()


# ---- In the server's process, and in those that it forks.


def _serve(asked):
    """Forks a process for each command that is asked for, until none can be; returns, in such a process, what to call."""
    gc.disable()  # which would copy what is shared
    _import_everything()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        word, streams, _, _ = socket.recv_fds(asked, 1, 3)
        if not word:
            os._exit(0)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            asked.close()
            return _keep(socket.socket(fileno=streams[0]), streams[1:])
        for stream in streams:
            os.close(stream)


def _keep(connection, streams):
    """Forks the process of a command and tells the other end its number, and then its exit code."""
    size = connection.recv(8, socket.MSG_WAITALL)
    request = b""
    while len(request) < int.from_bytes(size, "big"):
        request += connection.recv(1 << 20)
    process = os.fork()
    if process == 0:
        connection.close()
        return _become(*json.loads(request), streams)
    for stream in streams:
        os.close(stream)
    connection.sendall(f"{process}\n".encode())
    _, status = os.waitpid(process, 0)
    try:
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    except OSError:  # nobody waits for it
        pass
    os._exit(0)


def _become(words, cwd, env, streams):
    """Makes this the process of a command; returns its entry point."""
    for source, target in zip((os.open(os.devnull, os.O_RDONLY), *streams), range(3), strict=True):
        os.dup2(source, target)
        os.close(source)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    import jax

    for name, text in env.items():
        if name.startswith("JAX_") and hasattr(jax.config, name.lower()):
            kind = type(getattr(jax.config, name.lower()))
            if kind is bool:
                value = text.lower() in ("1", "true", "yes", "on")
            else:
                value = kind(text) if kind in (int, float) else text
            jax.config.update(name.lower(), value)
    command = words[0]
    sys.argv = [str(Path(sys.executable).with_name(command)), *words[1:]]
    from metarun.commands import cli

    return getattr(cli, ENTRIES[command])


def _import_everything():
    from hydra.core.plugins import Plugins

    import hydra_plugins
    import metarun

    for package in (metarun, hydra_plugins):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.", onerror=lambda _: None):
            try:
                importlib.import_module(module.name)
            except ImportError:  # of an extra that is not installed
                pass
    Plugins.instance()


if __name__ == "__main__":
    sys.path[0] = os.path.dirname(sys.executable)
    sys.exit(_serve(socket.socket(fileno=int(sys.argv[1])))())
