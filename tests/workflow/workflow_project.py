"""The workflow as a user runs it: copied into a folder of its own, through the command line."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from dry_runs import dry_run

from nme.config.project import Project, load_project
from nme.grid.paths import sources

ROOT = Path(__file__).parents[2]

# Takes the place of src/nme/cli.py: makes the files of each verb, with nothing in them.
STAND_IN = """
import sys
from pathlib import Path

def main():
    verb, options = sys.argv[1], dict(zip(sys.argv[2::2], sys.argv[3::2]))
    output = Path(options["--output"])
    files = [output]
    if verb == "prepare":
        files = [output / name for name in ("train.arrow", "test.arrow", "manifest.json")]
    if verb == "train":
        (output.parent / "snapshots").mkdir(parents=True)
    for ending in {"plot": ["png", "csv"], "claims": ["md", "html"]}.get(verb, []):
        files.append(output.with_suffix("." + ending))
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
"""


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

    def run(self, *command: str, ok: bool | None = True) -> str:
        """Output and errors of a command; ``ok`` says how it must end (None: either way)."""
        if command[0] == "snakemake" and "-n" in command:
            done = dry_run(command[1:], self.folder, self.environment())
        else:
            streams = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            done = subprocess.run(command, cwd=self.folder, env=self.environment(), **streams)
        if ok is not None:
            assert (done.returncode == 0) == ok, f"exit code {done.returncode} of {command}\n{done.stdout}"
        return done.stdout

    def snakemake(self, *arguments: str, scale: str = "tiny", ok: bool | None = True, cores: int = 2) -> str:
        return self.run("snakemake", "--cores", str(cores), "--config", f"scale={scale}", "--", *arguments, ok=ok)

    @contextmanager
    def computing_nothing(self) -> Iterator[None]:
        """Inside, the stages' commands only make their files."""
        cli = self.folder / "src/nme/cli.py"
        original = cli.read_text()
        cli.write_text(STAND_IN)
        try:
            yield
        finally:
            cli.write_text(original)

    def configuration(self, scale: str = "tiny") -> Project:
        """The project's current configuration, checked."""
        return load_project({"scale": scale}, self.folder / "config")

    def cheapest(self) -> list[str]:
        """The figure of each kind that wants the fewest files: accuracies, measurements, a landscape."""
        project = self.configuration()
        kinds: dict[str, list[str]] = {}
        for name, figure in project.figures.items():
            for kind in ("curves", "measure", "landscape"):
                if getattr(figure, kind):
                    kinds.setdefault(kind, []).append(name)
        return [min(names, key=lambda name: len(sources(project, name))) for names in kinds.values()]

    def planned(self, *targets: str, scale: str = "tiny", options: tuple[str, ...] = ()) -> dict[str, int]:
        """Jobs by rule that a dry run lists."""
        return jobs(self.dry_run(*targets, scale=scale, options=options))

    def dry_run(self, *targets: str, scale: str = "tiny", options: tuple[str, ...] = (), ok: bool = True) -> str:
        return self.run("snakemake", "-n", *options, "--config", f"scale={scale}", "--", *targets, ok=ok)

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
