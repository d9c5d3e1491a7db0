"""Options of all tests."""

import pytest
from hypothesis import settings

# How long an example takes depends on what else the machine does.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# Image sets that cannot come with the project; every test of them says so in these words.
WITHOUT_IMAGES = "the real image data are not at"


def pytest_addoption(parser):
    parser.addoption(
        "--no-skips", action="store_true", help="A skip fails the run (for CI), but for want of real images."
    )


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
