"""Hooks of pytest: where CI is set, a test that is skipped fails, but for want of a GPU."""

import os
from collections.abc import Generator

import pytest

#: Reasons for which a test may be skipped even where all tests must run.
MAY_BE_MISSING = ("GPU",)


def must_run(reason: str) -> bool:
    """Whether a test that is skipped for this reason fails: where CI is set, but for a GPU."""
    return bool(os.environ.get("CI")) and not any(name in reason for name in MAY_BE_MISSING)


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skipped test or file into a failed one where all tests must run."""
    if report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if must_run(reason):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} may not be skipped where CI is set: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Look at how a test ended."""
    report = yield
    refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Look at how reading a file of tests ended."""
    report = yield
    refuse_skip(report)
    return report
