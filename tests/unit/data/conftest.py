"""The marker of long attacks, which run with `pytest -m slow -s`."""

import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: long attacks with random damage; they run with -m slow")


def pytest_collection_modifyitems(config, items):
    if "slow" not in config.getoption("markexpr"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="a long attack: run it with -m slow"))
