"""A clone of the project whose Snakemake submits to the SLURM that answers here."""

import getpass
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from nme import __version__

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "containers" / f"nme-{__version__}.sif"
FINAL = {"CANCELLED", "COMPLETED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY"}


def wait_until(done: Callable[[], object], seconds: float, what: str) -> None:
    """Poll; fail when it takes longer."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


class Clone:
    """The project's files in a folder of its own, and the commands that a user types there.

    Args:
        folder: to make.
        inside: whether jobs run in the image; else in this environment, which starts faster.
        user: who owns the folder and types the commands.
    """

    def __init__(self, folder: Path, inside: bool, user: str = ""):
        self.folder, self.inside, self.user = folder, inside, user or getpass.getuser()
        folder.mkdir()
        for name in ("Snakefile", "workflow", "config", "profiles"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, folder / name)
        (folder / "slurm").symlink_to("profiles/slurm")
        # Trainings compute on CPUs here, and are to ask for a GPU all the same.
        gpu = {rule: {"slurm_partition": "gpu", "gpu": 1} for rule in ("train", "measure")}
        self.edit("profiles/slurm/config.yaml", lambda profile: profile.update({"set-resources": gpu}))
        (folder / "containers").mkdir()
        (folder / "containers" / IMAGE.name).symlink_to(IMAGE)
        self.began = time.strftime("%Y-%m-%dT%H:%M:%S")

    def edit(self, path: str, change: Callable[[dict], object]) -> None:
        """Change a YAML file by a function."""
        values = yaml.safe_load((self.folder / path).read_text())
        change(values)
        (self.folder / path).write_text(yaml.safe_dump(values, allow_unicode=True, sort_keys=False))

    def replace(self, path: str, old: str, new: str) -> None:
        """Change a file's text."""
        text = (self.folder / path).read_text()
        assert old in text
        (self.folder / path).write_text(text.replace(old, new))

    def command(self, *targets: str) -> list[str]:
        """The command of docs/cluster.md, at a small scale, on CPUs, with shorter waits."""
        snakemake = str(Path(sys.executable).with_name("snakemake"))
        waits = ["--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "20"]
        where = [] if self.inside else ["--software-deployment-method", "env-modules"]
        options = [*waits, *where, "--jobs", "8", "--config", "scale=tiny", "device=cpu"]
        return [snakemake, "--profile", "slurm", *options, "--", *targets]

    def start(self, *targets: str, **options) -> subprocess.Popen:
        """Start Snakemake in the background; what it says goes to driver.log."""
        with (self.folder / "driver.log").open("a") as log:
            return subprocess.Popen(self.command(*targets), cwd=self.folder, stdout=log, stderr=log, **options)

    def run(self, *targets: str, ok: bool = True, extra: tuple[str, ...] = (), limit: float = 900) -> str:
        """Snakemake's words; ``ok`` says how it must end."""
        command = self.command(*targets)
        command[1:1] = extra
        if self.user != getpass.getuser():
            home = pwd.getpwnam(self.user).pw_dir
            command = ["runuser", "-u", self.user, "--", "env", f"HOME={home}", f"USER={self.user}", *command]
        done = subprocess.run(command, cwd=self.folder, text=True, capture_output=True, timeout=limit)
        assert (done.returncode == 0) == ok, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def finish(self, driver: subprocess.Popen, seconds: float) -> None:
        """Wait for a driver that must succeed."""
        code = driver.wait(timeout=seconds)
        assert code == 0, (self.folder / "driver.log").read_text()

    def queue(self, *states: str) -> list[str]:
        """Ids of this clone's jobs in the queue, in these states if any are given."""
        lines = slurm("squeue", "--noheader", "--format=%i|%T|%Z")
        jobs = [line.split("|") for line in lines.splitlines()]
        return [i for i, state, where in jobs if Path(where) == self.folder and (not states or state in states)]

    def history(self, *fields: str) -> list[dict[str, str]]:
        """This clone's jobs, as the accounting has them, in the order in which they were submitted."""
        names = ["JobIDRaw", "State", "WorkDir", *fields]
        lines = slurm("sacct", "-a", "-n", "-P", "-X", f"--starttime={self.began}", f"--format={','.join(names)}")
        rows = [dict(zip(names, line.split("|"), strict=True)) for line in lines.splitlines()]
        return sorted((r for r in rows if Path(r["WorkDir"]) == self.folder), key=lambda r: int(r["JobIDRaw"]))

    def states(self) -> list[str]:
        """Final states of this clone's jobs, once none is in the queue."""
        wait_until(lambda: not self.queue(), 60, "the queue is empty")

        def known() -> bool:
            rows = self.history()
            return bool(rows) and all(row["State"].split()[0] in FINAL for row in rows)

        wait_until(known, 60, "the accounting knows how every job ended")
        return [row["State"].split()[0] for row in self.history()]


def slurm(*command: str) -> str:
    """Output of a SLURM command."""
    return subprocess.run(command, text=True, capture_output=True, check=True).stdout
