#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The test suite: test.sh [PYTEST_ARGUMENTS...]. Without arguments upstream's own tests are compared too.
set -euo pipefail

# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

env_apply
env_install "$ROOT/tests/requirements.txt"
env_enter

cd "$ROOT"
targets=(
    tests
    sglang/python/sglang/test/attention/test_hsa_*.py
    sglang/python/sglang/jit_kernel/tests/test_fused_metadata_*.py
)
for argument in "$@"; do
    if [ -e "${argument%%::*}" ]; then targets=(); fi # the caller names files
done
# Everything takes a while: one worker runs what starts servers, the other the rest. See tests/conftest.py.
workers=()
[ $# -gt 0 ] || workers=(--numprocesses 2 --dist loadgroup)
# -rfEs: what failed, and also what was skipped and why, since a skipped test proves nothing.
status=0
python -m pytest -rfEs "${workers[@]}" "$@" "${targets[@]}" || status=$?
if [ $# -eq 0 ]; then
    echo "stock tests: the pinned release against the patched tree"
    PYTHON=python scripts/stock_tests.sh || status=$?
fi
exit "$status"
