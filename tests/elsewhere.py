# SPDX-License-Identifier: Apache-2.0
"""For the conftest.py of a folder whose tests are of some SGLang releases only."""

import pytest


def skip_modules(reason: str):
    """The hook ``pytest_pycollect_makemodule`` of a folder that is skipped as a whole, without importing its modules."""

    class Elsewhere(pytest.Module):
        def collect(self):
            pytest.skip(reason, allow_module_level=True)

    def pytest_pycollect_makemodule(module_path, parent):
        return Elsewhere.from_parent(parent, path=module_path)

    return pytest_pycollect_makemodule
