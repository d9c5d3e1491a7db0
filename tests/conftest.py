"""Options of all tests."""

import pytest
from hypothesis import settings

# How long an example takes depends on what else the machine does.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_addoption(parser):
    parser.addoption("--no-skips", action="store_true", help="A skipped test fails the run (for CI).")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    if hasattr(session.config, "workerinput"):
        return  # a worker of pytest-xdist; the process that started it hears of each skipped test
    skipped = session.config.pluginmanager.get_plugin("terminalreporter").stats.get("skipped", [])
    if session.config.getoption("--no-skips") and skipped and exitstatus == 0:
        print(
            "\nskipped, where nothing may be skipped:",
            *(f"  {r.nodeid}: {r.longrepr[-1]}" for r in skipped),
            sep="\n",
        )
        session.exitstatus = 1
