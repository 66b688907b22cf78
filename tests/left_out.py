"""What a machine may lack, such as a cluster with a node.

A test that needs it is left out, and says how to have it run; the last lines of a run tell all that was left out.  Where
$SERVEPLANE_CI is set nothing may be missing, and such a test fails.
"""

import os
from collections import Counter
from typing import NoReturn

import pytest

REQUIRED = "SERVEPLANE_CI"
MARK = "left out: "


def leave_out(why: str) -> NoReturn:
    """`why` says what is missing, and what to do to have the test run."""
    if os.environ.get(REQUIRED):
        pytest.fail(f"${REQUIRED} is set, so nothing may be missing: {why}", pytrace=False)
    pytest.skip(MARK + why)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    """Behind everything else that pytest has to say."""
    try:
        return (yield)
    finally:
        reasons = [report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", ())]
        counts = Counter(reason.removeprefix(MARK) for reason in reasons)
        if counts:
            terminalreporter.section("left out")
        for why, count in counts.most_common():
            terminalreporter.write_line(f"{count} test{'s' if count > 1 else ''}: {why}")
