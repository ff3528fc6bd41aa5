import pytest
from made_up import made_up_comparison, made_up_context

from pipeline.report.comparison_report import build_report
from pipeline.report.context import ReportContext
from pipeline.statistics.comparison import Comparison


@pytest.fixture(scope="session")
def comparison() -> Comparison:
    return made_up_comparison()


@pytest.fixture(scope="session")
def context() -> ReportContext:
    return made_up_context()


@pytest.fixture(scope="session")
def files(comparison: Comparison, context: ReportContext) -> dict[str, bytes]:
    """The report of both."""
    return build_report(comparison, context)
