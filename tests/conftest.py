"""Options of the test run, and what it must not hide."""

from pathlib import Path

import hypothesis
import pytest

# How fast examples are made says how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile("project", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("project")


def pytest_addoption(parser: pytest.Parser) -> None:
    default = Path(__file__).parent / "golden"
    parser.addoption("--golden", type=Path, default=default, metavar="DIR", help="known answers to test against")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the golden files that nothing compares, even where skips are not listed."""
    reasons = [report.longrepr[2] for report in terminalreporter.getreports("skipped")]
    for reason in sorted(reason for reason in reasons if "not covered:" in reason):
        terminalreporter.write_line(reason.removeprefix("Skipped: "), yellow=True)
