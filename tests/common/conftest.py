"""The checks of one row share its compiled functions."""

import pytest


def pytest_collection_modifyitems(items):
    """All checks of one row run in one process (with --dist loadgroup)."""
    for item in items:
        row = getattr(item, "callspec", None) and item.callspec.params.get("row")
        if row is not None:
            item.add_marker(pytest.mark.xdist_group(f"{item.path.stem}-{row.name}"))
