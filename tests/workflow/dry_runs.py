"""Dry runs of Snakemake in copies of one process that has imported it: half of a dry run's time is imports."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

# The slow imports of a dry run. Nothing of nme is among them: a project under test has its own copy.
SLOW = ("snakemake.cli", "snakemake.storage", "snakemake.profiles", "snakemake.report", "pydantic", "requests")


def dry_run(arguments: tuple[str, ...], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """Run ``snakemake`` as in a terminal, and keep its output and errors together."""
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as output:
        request = {"arguments": arguments, "folder": str(folder), "environment": environment, "output": output.name}
        server = _server()
        print(json.dumps(request), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(("snakemake", *arguments), code, output.read())


@cache
def _server() -> subprocess.Popen:
    """The process that is copied. It ends with this one, which closes its standard input."""
    return subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _serve() -> None:
    modules = [importlib.import_module(name) for name in SLOW]
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            os.chdir(request["folder"])
            os.environ.clear()
            os.environ.update(request["environment"])
            sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
            sys.argv = ["snakemake", *request["arguments"]]
            output = os.open(request["output"], os.O_WRONLY | os.O_APPEND)
            for stream, file in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
                os.dup2(file, stream)
            modules[0].main()  # raises SystemExit
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
