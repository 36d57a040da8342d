"""Made-up results, and a report of them."""

from collections.abc import Callable

import pytest

from softprompt.compare import RunResult
from softprompt.compare.report.html import ComparisonReport
from support.comparisons import make_report, make_result


@pytest.fixture(scope="session")
def answered() -> Callable[..., RunResult]:
    """Makes a result of a variant, a seed and a digit a row."""
    return make_result


@pytest.fixture(scope="session")
def report() -> Callable[..., ComparisonReport]:
    """Makes a report of results; what is not given is made up."""
    return make_report
