"""Runs of the laws: those of the integration tests."""

from tests.integration.conftest import composed, csv_folder, e2e, masked, shared, teacher, untrained

__all__ = ["composed", "csv_folder", "e2e", "masked", "shared", "teacher", "untrained"]
