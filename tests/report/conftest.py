"""Reports of the demo model, as the page reads them."""

from pathlib import Path

import pytest

from shareatt_export.report.measurements import Measurement, read_measurements


@pytest.fixture
def measured(reports: dict[str, Path]) -> dict[str, Measurement]:
    return {kind: read_measurements(path)[0] for kind, path in reports.items()}
