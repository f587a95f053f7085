# SPDX-License-Identifier: Apache-2.0
"""Makes this folder's helpers importable. Skips what is not of the tree's release."""

import sys
from pathlib import Path

from elsewhere import skip_modules

sys.path.insert(0, str(Path(__file__).parent))

from hisparse_release import OLDEST, RELEASE  # noqa: E402, the line above makes it importable

OF_THE_OLDEST = {
    "test_server_args.py": "later releases choose the backends in words of their own: run it with --release v0.5.10rc0",
    "test_smem_layout.py": "later releases lay shared memory out in words of their own: run it with --release v0.5.10rc0",
}

if RELEASE is None:
    pytest_pycollect_makemodule = skip_modules("the release has no [HiSparse] series: run it with --release v0.5.23")
elif not OLDEST:

    def pytest_pycollect_makemodule(module_path, parent):
        reason = OF_THE_OLDEST.get(module_path.name)
        return skip_modules(reason)(module_path, parent) if reason else None
