#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The test suite: test.sh [--release RELEASE] [--quick] [PYTEST_ARGUMENTS...]. Without arguments (but --release) upstream's
# own tests are compared too.
set -euo pipefail

# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

env_release "$@"
set -- ${ARGUMENTS[@]+"${ARGUMENTS[@]}"}
env_apply
env_install "$ROOT/tests/requirements.txt"
env_enter

cd "$ROOT"
attention=sglang/python/sglang/test/attention
dense=$attention/test_hsa_backend_dense_integration.py
in_tree=()
for file in "$attention"/test_hsa_*.py sglang/python/sglang/jit_kernel/tests/test_fused_metadata_precompute_*.py; do
    [ "$file" = "$dense" ] || in_tree+=("$file")
done

# run_pytest ARGUMENTS...: -rfEs shows what failed, and what was skipped and why, since a skipped test proves nothing.
run_pytest() {
    python -m pytest -rfEs "$@"
}

if [ "${1:-}" = --quick ]; then
    # Two minutes: references, storage, refusals and the overlay tool; no server, and no kernel under the interpreter.
    shift
    quick=(paged_kernel contract refusals backend_decode page_versions kvpool_repr mask_last_slot)
    quick=("${quick[@]/#/$attention/test_hsa_}")
    run_pytest "$@" "${quick[@]/%/.py}" tests/test_refusals.py tests/overlay_tool
    exit
fi

if [ $# -gt 0 ]; then
    targets=(tests "$dense" "${in_tree[@]}")
    for argument in "$@"; do
        if [ -e "${argument%%::*}" ]; then targets=(); fi # the caller names files
    done
    run_pytest "$@" "${targets[@]}"
    exit
fi

# Two servers at once would fight for memory and cores; what starts none runs beside them.
servers=(tests/hsa tests/hils/test_{parity,schedules,window_pool}.py tests/quality/test_small_tier.py
    tests/cpu_host/test_{engine_cpu,import}.py "$dense")
logs=$(mktemp -d)
run_pytest "${servers[@]/#/--ignore=}" tests "${in_tree[@]}" >"$logs/others" 2>&1 &
beside=$!
trap 'kill "$beside" 2>/dev/null || true; rm -rf "$logs"' EXIT # a failing command here would be the exit status
status=0
echo "tests: ${servers[*]}, and the others beside them"
run_pytest "${servers[@]}" 2>&1 | tee "$logs/servers" || status=$?
echo "tests: the others"
wait "$beside" || status=$?
cat "$logs/others"
if [ -e sglang/python/sglang/test/test_dump_metric.py ]; then
    echo "stock tests: the pinned release against the patched tree"
    PYTHON=python scripts/stock_tests.sh || status=$?
else
    echo "stock tests: the archive of this release has none; scripts/stock_tests.sh --tests DIR takes those of a checkout"
fi

# The end of a long log is what is read first: what failed, or that nothing did.
echo "result:"
grep -hE '^(FAILED|ERROR) ' "$logs/servers" "$logs/others" || true
tail -qn 1 "$logs/servers" "$logs/others"
exit "$status"
