"""Options of all tests."""

import pytest
from hypothesis import settings

# How long an example takes depends on what else the machine does.
settings.register_profile("any machine", deadline=None, max_examples=50)
settings.load_profile("any machine")

# Image sets that cannot come with the project; every test of them says so in these words.
WITHOUT_IMAGES = "the real image data are not at"


def pytest_addoption(parser):
    parser.addoption(
        "--no-skips", action="store_true", help="A skip fails the run (for CI), but for want of real images."
    )


# Files that share a project, which takes long to make, or the one cluster.
SHARED = {
    "tests/slurm/test_cluster.py": "cluster",
    "tests/slurm/test_faults.py": "cluster",
    "tests/workflow/test_report.py": "finished",
    "tests/workflow/test_reruns.py": "finished",
    "tests/workflow/test_resume.py": "trained",
    "tests/workflow/test_small_run.py": "trained",
}


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):  # what takes longest comes first, so that two workers end together
        items.sort(key=lambda item: not item.nodeid.startswith(("tests/slurm", "tests/workflow")))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A worker gets a whole file at a time, or files that share something, so that this is made once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file, _, _ = nodeid.partition("::")
            return SHARED.get(file, file)

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    if hasattr(session.config, "workerinput"):
        return  # a worker of pytest-xdist; the process that started it hears of each skipped test
    skipped = session.config.pluginmanager.get_plugin("terminalreporter").stats.get("skipped", [])
    skipped = [report for report in skipped if WITHOUT_IMAGES not in str(report.longrepr[-1])]
    if session.config.getoption("--no-skips") and skipped and exitstatus == 0:
        print(
            "\nskipped, where nothing may be skipped:",
            *(f"  {r.nodeid}: {r.longrepr[-1]}" for r in skipped),
            sep="\n",
        )
        session.exitstatus = 1
