"""The workflow as a user runs it: copied into a folder of its own, through the command line."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


class Project:
    """A clone of the project's files, with its own copy of the package, so that a test may edit anything."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def fresh(cls, folder: Path) -> "Project":
        folder.mkdir()
        for name in ("Snakefile", "workflow", "config", "profiles", "src"):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder / name)
        (folder / "slurm").symlink_to("profiles/slurm")
        return cls(folder)

    def copy(self, folder: Path) -> "Project":
        # Modification times are kept: Snakemake compares them.
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project(folder)

    def environment(self) -> dict[str, str]:
        return {
            **{k: v for k, v in os.environ.items() if k != "NME_DATA_DIR"},
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(self.folder / "src"),
        }

    def run(self, *command: str, ok: bool | None = True, **options) -> str:
        """Output and errors of a command; ``ok`` says how it must end (None: either way)."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **options,
        )
        if ok is not None:
            assert (done.returncode == 0) == ok, f"exit code {done.returncode} of {command}\n{done.stdout}"
        return done.stdout

    def snakemake(self, *arguments: str, scale: str = "tiny", ok: bool | None = True) -> str:
        return self.run("snakemake", "--cores", "2", "--config", f"scale={scale}", "--", *arguments, ok=ok)

    def planned(self, *targets: str, scale: str = "tiny", options: tuple[str, ...] = ()) -> dict[str, int]:
        """Jobs by rule that a dry run lists."""
        text = self.run("snakemake", "-n", *options, "--config", f"scale={scale}", "--", *targets)
        return jobs(text)

    def edit(self, path: str, change) -> None:
        """Change a YAML file of the configuration by a function."""
        file = self.folder / path
        values = yaml.safe_load(file.read_text())
        change(values)
        file.write_text(yaml.safe_dump(values, allow_unicode=True, sort_keys=False))


def jobs(text: str) -> dict[str, int]:
    """The table of jobs in Snakemake's output, without the collecting rules."""
    table = re.search(r"job\s+count\n-+ +-+\n(.*?)\ntotal ", text, re.DOTALL)
    if not table:
        assert "Nothing to be done" in text, text
        return {}
    counts = dict(line.split() for line in table.group(1).splitlines())
    return {rule: int(n) for rule, n in counts.items() if rule not in ("all", "figures")}
