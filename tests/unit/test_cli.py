"""The command line: a mistake is one message and exit code 2, without a traceback and without an output."""

import inspect
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from specs import spec_in_memory

from nme import __version__, cli
from nme.config.project import Config, load_project
from nme.datasets.base import Places
from nme.errors import NmeError
from nme.grid.cells import Cell, measurements, parse_seeds, snapshots
from nme.grid.claims import map_spec
from nme.grid.paths import sources
from nme.grid.plan import SPEED
from nme.grid.specs import TrainSpec, landscape_spec, train_spec
from nme.grid.status import status
from nme.outputs import parquet
from nme.outputs.locks import lock_of, one_at_a_time
from nme.outputs.provenance import spec_hash
from nme.stages.prepare import prepare
from nme.stages.train import train
from nme.training.checkpoint import Checkpoint
from nme.workflow.environment import export

ROOT = Path(__file__).parents[2]
NME = str(Path(sys.executable).with_name("nme"))
EXAMPLES = 50


def settings(**changes) -> str:
    """Settings of a training job: one seed and a few steps, with ``changes`` of the recipe."""
    recipe = load_project({"scale": "tiny"}, ROOT / "config").scale.recipes["digits_mlp"]
    cell = Cell.of("digits_mlp", "gelu", "grad_norm", 0.1)
    spec = train_spec(recipe, cell, range(1), []).as_json()
    return json.dumps(spec | {"recipe": spec["recipe"] | {"batch_size": 16, **changes}})


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The manifest of a small dataset."""
    folder = tmp_path_factory.mktemp("data")
    prepare(spec_in_memory("digits", EXAMPLES, 20), Places(), folder)
    return folder / "manifest.json"


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("NME_")}


def nme(*arguments: object) -> subprocess.CompletedProcess:
    """Train in a separate process, as the rule does."""
    command = [NME, *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)


def assert_one_message(code: int, error: str, *parts: str) -> None:
    assert code == 2
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1
    assert error.startswith("nme: error: ")
    for part in parts:
        assert part in error


# ------------------------------------------------------- in its own process


def test_version():
    done = nme("--version")
    assert done.returncode == 0
    assert __version__ in done.stdout
    assert done.stderr == ""


def test_no_verb_shows_help():
    done = nme()
    assert "Traceback" not in done.stdout + done.stderr
    for verb in [*VERBS, "status"]:
        assert verb in done.stdout + done.stderr


def test_bad_json(tmp_path):
    done = nme("prepare", "--spec", "{'dataset': 'digits'}", "--output", tmp_path / "out")
    assert_one_message(done.returncode, done.stderr, "--spec is not JSON")
    assert not (tmp_path / "out").exists()


def train_by_command(data: Path, output: Path, *options: str) -> subprocess.CompletedProcess:
    return nme("train", "--spec", settings(), "--data", data, "--output", output, *options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, so that asking for one is no mistake")
def test_cuda_without_a_gpu(data, tmp_path):
    done = train_by_command(data, tmp_path / "out" / "metrics.parquet", "--device", "cuda")
    assert_one_message(done.returncode, done.stderr, "device is 'cuda'", "no usable GPU", "allowed here: cpu, auto")
    assert not (tmp_path / "out").exists()


def test_a_truncated_checkpoint_starts_over_and_says_so(data, tmp_path):
    expected = tmp_path / "undisturbed" / "metrics.parquet"
    train(TrainSpec.model_validate_json(settings()), data, expected, torch.device("cpu"))
    checkpoint = Checkpoint(tmp_path / "again" / "resume.pt", {}, 0)
    checkpoint.save({"rows": [], "member": {"model": torch.zeros(100)}, "seconds": 1.0})
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:-50])
    done = train_by_command(data, tmp_path / "again" / "metrics.parquet")
    assert done.returncode == 0
    assert f"{checkpoint.path}: the resume checkpoint is damaged; starting over" in done.stderr
    found, wanted = (
        parquet.read(path)[0].drop_columns("seconds") for path in (tmp_path / "again/metrics.parquet", expected)
    )
    assert found.equals(wanted)
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"metrics.parquet", "snapshots"}


def test_sigterm_saves_and_asks_to_be_run_again(data, tmp_path):
    options = ["--data", data, "--output", tmp_path / "metrics.parquet", "--checkpoint-seconds", "0"]
    command = [NME, "train", "--spec", settings(epochs=100_000), *map(str, options)]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as job:
        # The first checkpoint tells that it trains; before, SIGTERM simply ends the process.
        while not (tmp_path / "resume.pt").exists() and job.poll() is None:
            time.sleep(0.05)
        job.terminate()
        error = job.stderr.read()
    assert job.returncode == 75, "EX_TEMPFAIL: run it again"
    last = error.splitlines()[-1]
    assert last.startswith("nme: stopped by SIGTERM; run it again")
    assert str(tmp_path / "resume.pt") in last
    assert "Traceback" not in error
    assert {path.name for path in tmp_path.iterdir()} == {"resume.pt", "snapshots.partial"}


# ------------------------------------------- in this process, to save time


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs ``nme`` in an empty folder; its exit code and what it wrote to the two streams."""
    for key in ("NME_DEVICE", "NME_DATA_DIR"):
        monkeypatch.delenv(key, raising=False)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nme", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return call


def test_a_full_gpu_gives_one_sentence(run, monkeypatch):
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …")

    monkeypatch.setattr(cli, "app", full)
    where = "CUDA out of memory. Tried to allocate 2.00 GiB"
    assert run() == (1, "", f"nme: error: the GPU's memory is full ({where}). Set a smaller micro_batch\n")


def test_a_mistake_of_the_code_keeps_its_traceback(run, monkeypatch):
    def wrong():
        raise RuntimeError("expected scalar type Float")

    monkeypatch.setattr(cli, "app", wrong)
    with pytest.raises(RuntimeError, match="scalar type"):
        run()


OUT = "out/result.x"
VERBS = {
    "prepare": ["--output", OUT],
    "train": ["--output", OUT, "--data", "manifest.json"],
    "measure": ["--output", OUT, "--data", "manifest.json", "--snapshots", "snapshots"],
    "landscape": ["--output", OUT],
    "tables": ["--output", OUT],
    "claims": ["--output", OUT, "fig2.parquet"],
    "map": ["--output", OUT, "fig2.parquet"],
    "plot": ["--output", OUT, "--table", "table.parquet"],
}


def test_every_verb_that_takes_settings_is_tried_here():
    verbs = [(command.name or command.callback.__name__, command.callback) for command in cli.app.registered_commands]
    assert {name for name, verb in verbs if "spec" in inspect.signature(verb).parameters} == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[1]", "must be keys with values"),
    ],
)
def test_a_wrong_spec(run, verb, spec, part):
    code, _, error = run(verb, "--spec", spec, *VERBS[verb])
    assert_one_message(code, error, part)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_spec_is_one_line_per_mistake(run, verb):
    code, _, error = run(verb, "--spec", '{"versoin": 1}', *VERBS[verb])
    assert code == 2
    lines = error.removeprefix("nme: error: ").splitlines()
    assert all(line.startswith("--spec: ") for line in lines)
    assert "--spec: version: this key is missing" in lines
    assert sum("unknown key 'versoin'; did you mean 'version'?" in line for line in lines) == 1
    assert list(Path().iterdir()) == []


def spec_of(dataset: str) -> str:
    return json.dumps(spec_in_memory("digits").as_json() | {"dataset": dataset, "source": dataset})


def drawing(figure: str) -> str:
    return json.dumps({"figure": figure, "scale": "tiny", "version": 1})


MAP = json.dumps(map_spec(load_project({"scale": "tiny"}, ROOT / "config"), "map").as_json())


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["prepare", "--spec", spec_of("digts"), "--output", "out"], ["'digts'", "did you mean 'digits'?"]),
        (["prepare", "--spec", spec_of("digits"), "--output", "out", "--data-dir", "/no/such"],
         ["data_dir is '/no/such'", "not a folder"]),
        (["train", "--spec", settings(), "--data", "no/such.json", "--output", OUT], ["no/such.json"]),
        (["train", "--spec", settings(), "--data", "x", "--output", OUT, "--device", "gpu"],
         ["device is 'gpu'", "(allowed: auto, cpu, cuda)"]),
        (["train", "--spec", settings(epochs=0), "--data", "x", "--output", OUT], ["recipe.epochs is 0"]),
        (["plot", "--spec", drawing("fig11"), "--table", "x", "--output", OUT],
         ["figure 'fig11'", "did you mean 'fig1'?"]),
        (["plot", "--spec", drawing("fig1"), "--table", "no.parquet", "--output", OUT], ["no.parquet"]),
        (["plot", "--spec", drawing("fig1"), "--table", __file__, "--output", OUT], [__file__]),
        (["map", "--spec", MAP, "--output", OUT, "no/fig2.parquet"], ["no/fig2.parquet: missing"]),
        (["status", "--config", "no/config.yaml"], ["no/config.yaml: No such file"]),
        (["plan", "--seeds", "0", "--config", str(ROOT / "config" / "config.yaml")], ["seeds", "is 0"]),
    ],
    ids=lambda v: v[0] if isinstance(v[0], str) else None,
)  # fmt: skip
def test_a_mistake_is_one_message(run, arguments, parts):
    code, _, error = run(*arguments)
    assert_one_message(code, error, *parts)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("content", "part"),
    [("", "scale"), ("[tiny]", "config.yaml"), ("tiny", "config.yaml"), ("scale: [", "config.yaml"),
     ("scale: tny", "did you mean 'tiny'?")],
)  # fmt: skip
def test_a_mistake_on_the_users_page(run, content, part):
    shutil.copytree(ROOT / "config", "config")
    Path("config/config.yaml").write_text(content)
    code, _, error = run("status")
    assert code == 2
    assert error.startswith("nme: error: ")
    assert part in error


def test_a_batch_larger_than_the_data(run, data):
    spec = settings(batch_size=EXAMPLES + 1)
    code, _, error = run("train", "--spec", spec, "--data", data, "--output", OUT)
    assert_one_message(code, error, f"batch_size is {EXAMPLES + 1}", f"(allowed: up to {EXAMPLES},")
    assert list(Path().iterdir()) == []


def test_a_batch_of_all_the_data(data, tmp_path):
    train(
        TrainSpec.model_validate_json(settings(batch_size=EXAMPLES)),
        data,
        tmp_path / "metrics.parquet",
        torch.device("cpu"),
    )
    assert parquet.read(tmp_path / "metrics.parquet")[0].num_rows == 3


def test_the_system_says_no(run):
    """Not a mistake in the input; still no traceback."""
    Path("out").write_text("a file where a folder is needed")
    code, _, error = run("prepare", "--spec", spec_of("digits"), "--output", "out/data")
    assert code == 1
    assert error.startswith("nme: error: out")
    assert len(error.splitlines()) == 1


def test_prepare_takes_the_data_folder_from_the_environment(run, monkeypatch):
    monkeypatch.setenv("NME_DATA_DIR", "/no/such")
    code, _, error = run("prepare", "--spec", spec_of("digits"), "--output", "out")
    assert_one_message(code, error, "data_dir is '/no/such'")


def test_train_takes_the_device_from_the_environment(run, monkeypatch):
    monkeypatch.setenv("NME_DEVICE", "gpu")
    code, _, error = run("train", "--spec", settings(), "--data", "x", "--output", OUT)
    assert_one_message(code, error, "device is 'gpu'")


# ---------------------------------------------------- status, environment


def result(project, root: Path, path: str, seconds: float = 1.0) -> None:
    """An empty result of the settings that the job has now."""
    spec = {"landscape": landscape_spec(project.figures["fig1"])}.get(path.split("/")[2])
    if not spec:
        cell = Cell.from_path("/".join(path.split("/")[3:7]))
        seeds = parse_seeds(path.split("/")[7].removeprefix("seed="))
        at = snapshots(measurements(project).get(cell, {}))
        spec = train_spec(project.scale.recipes[cell.recipe], cell, seeds, at)
    parquet.write(
        pa.table({"x": [1]}),
        root / path,
        {"seconds": seconds, "spec_sha256": spec_hash(spec.as_json()), "device": "cpu (AVX2)"},
    )


def test_status_counts_what_is_there(tmp_path):
    project = load_project({"scale": "tiny"}, ROOT / "config")
    wanted = sources(project, "fig2")
    for path in [*wanted[:3], "results/laptop/landscape/fig1.parquet"]:
        result(project, tmp_path, path)
    parquet.write(pa.table({"x": [1]}), tmp_path / wanted[6], {"seconds": 1, "spec_sha256": "of other settings"})
    (tmp_path / wanted[3]).parent.mkdir(parents=True)
    (tmp_path / wanted[3]).touch()  # damaged
    log = tmp_path / "logs" / Path(wanted[4]).parent.relative_to("results").with_name("seed=0-1.log")
    log.parent.mkdir(parents=True)
    log.write_text("nme: error")
    starting = log.parents[1] / Path(wanted[7]).parts[6] / log.name
    starting.parent.mkdir(parents=True, exist_ok=True)
    starting.touch()
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/fig1.csv").write_text("loss,scale\n1,tiny\n")
    (tmp_path / "figures/fig2.csv").write_text("rho,scale\n0,laptop\n")
    (tmp_path / "figures/fig3.csv").write_text("")
    with one_at_a_time(lock_of(tmp_path / wanted[5])):
        rows = {row.figure: row for row in status(project, "cpu", tmp_path)}
    assert set(rows) == {*project.figures, "all"}
    found = {name: ([row.count(s) for s in ("done", "running", "failed")], row.drawn) for name, row in rows.items()}
    assert found["fig1"] == ([0, 0, 0], True)
    assert found["fig2"] == ([3, 1, 2], False), "drawn, but at another scale"
    assert rows["fig2"].needed == len(wanted)
    assert not found["fig3"][1]
    assert rows["claims"].needed > rows["fig3"].needed
    assert rows["map"].jobs.keys() == {
        path for name in ("fig2", "fig4", "ablation", "mechanism") for path in rows[name].jobs
    }
    assert rows["all"].needed == len({path for row in rows.values() for path in row.jobs})


def test_the_time_left_is_scaled_by_what_jobs_took(tmp_path):
    project = load_project({"scale": "tiny"}, ROOT / "config")
    (before,) = [row for row in status(project, "cpu", tmp_path) if row.figure == "fig3"]
    path, job = next(iter(before.jobs.items()))
    result(project, tmp_path, path, 5 * job.seconds)
    (after,) = [row for row in status(project, "cpu", tmp_path) if row.figure == "fig3"]
    start = SPEED["cpu"].start
    left = sum(5 * j.seconds + start for p, j in before.jobs.items() if p != path)
    assert after.hours_left == pytest.approx(left / 3600)
    (elsewhere,) = [row for row in status(project, "cuda", tmp_path) if row.figure == "fig3"]
    (unknown,) = [row for row in status(project, "cuda") if row.figure == "fig3"]
    assert {p: j.seconds for p, j in elsewhere.jobs.items()} == {p: j.seconds for p, j in unknown.jobs.items()}


def test_seeds_on_the_command_line(run):
    shutil.copytree(ROOT / "config", "config")
    members, jobs = [], []
    for seeds in ("2", "6"):
        _, out, _ = run("plan", "--scale", "tiny", "--seeds", seeds, "--json")
        members.append(json.loads(out)["fig2"]["members"])
        _, out, _ = run("status", "--scale", "tiny", "--seeds", seeds)
        (row,) = [line.split() for line in out.splitlines() if "fig2" in line]
        jobs.append(int(row[9]))
    assert members[1] == 3 * members[0] > 0
    assert jobs[1] == 3 * jobs[0] > 0


def test_status_command(run):
    shutil.copytree(ROOT / "config", "config")
    project = load_project({"scale": "tiny"}, "config")
    result(project, Path(), sources(project, "fig1")[0])
    code, out, _ = run("status", "--scale", "tiny")
    assert code == 0
    assert "scale tiny" in out
    (row,) = [line.split() for line in out.splitlines() if "fig1" in line]
    assert row[1:-1:2] == ["fig1", "1", "0", "0", "1", "0.00", "no"]


def test_the_environment_of_the_rules(monkeypatch, tmp_path):
    for key in ("NME_DEVICE", "NME_DATA_DIR", "PATH"):
        monkeypatch.setenv(key, "before")
    monkeypatch.setenv("HOME", str(tmp_path))
    export(Config(scale="tiny", device="auto", data_dir="~/images"))
    assert os.environ["NME_DEVICE"] == "auto"
    assert os.environ["NME_DATA_DIR"] == str(tmp_path / "images")
    assert os.environ["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}before"


def test_folders_outside_of_the_project_are_bound_into_the_image(monkeypatch, tmp_path):
    for key in ("NME_DEVICE", "NME_DATA_DIR", "PATH"):
        monkeypatch.setenv(key, "")
    monkeypatch.setenv("APPTAINER_BIND", "/given:/there")
    images, real, project = (tmp_path / name for name in ("images", "real", "project"))
    for folder in (images, real, real / "disk", project, project / "own", project / "figures"):
        folder.mkdir()
    monkeypatch.chdir(project)
    (tmp_path / "scratch").symlink_to(real)
    disk = tmp_path / "scratch" / "disk"  # the name that the link has for it, which it has inside, too
    Path("results").symlink_to(disk)
    Path("linked").symlink_to(images)
    for given in (str(images), "../images", "linked"):
        export(Config(scale="tiny", data_dir=given))
        assert os.environ["NME_DATA_DIR"] == str(images)
        assert os.environ["APPTAINER_BIND"] == f"/given:/there,{images},{disk}"
    for inside_or_missing in (project / "own", tmp_path / "gone"):
        monkeypatch.setenv("APPTAINER_BIND", "")
        export(Config(scale="tiny", data_dir=str(inside_or_missing)))
        assert os.environ["APPTAINER_BIND"] == str(disk)


@pytest.mark.parametrize(("name", "escaped"), [("a,b", r"a\,b"), ("12:30", r"12\:30"), ("a,b:c", r"a\,b\:c")])
def test_separators_in_the_name_of_a_bound_folder_are_escaped(monkeypatch, tmp_path, name, escaped):
    for key in ("NME_DEVICE", "NME_DATA_DIR", "PATH"):
        monkeypatch.setenv(key, "")
    monkeypatch.setenv("APPTAINER_BIND", "/given")
    (tmp_path / name).mkdir()
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    for _ in range(2):
        export(Config(scale="tiny", data_dir=str(tmp_path / name)))
        assert os.environ["APPTAINER_BIND"] == f"/given,{tmp_path}/{escaped}"


def test_no_data_dir_leaves_the_users_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("NME_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setenv("NME_DEVICE", "cpu")
    export(Config(scale="tiny"))
    assert os.environ["NME_DATA_DIR"] == str(tmp_path)


def test_a_users_variable_that_is_no_folder_is_one_message(monkeypatch):
    for key, value in (("NME_DATA_DIR", "/no/such"), ("PATH", os.environ["PATH"]), ("NME_DEVICE", "cpu")):
        monkeypatch.setenv(key, value)
    with pytest.raises(NmeError, match="NME_DATA_DIR is '/no/such', which is not a folder"):
        export(Config(scale="tiny"))
