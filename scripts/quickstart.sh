#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh clone to a proof that HSA runs: environment, patched tree, and servers on the CPU that answer a question.
# quickstart.sh [--release RELEASE]
set -euo pipefail

# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

env_release "$@"
[ ${#ARGUMENTS[@]} -eq 0 ] ||
    die "takes no arguments but --release; PYTHON and SGLANG_HSA_VENV in the environment are described in scripts/env.sh"
env_apply
# shellcheck disable=SC2119 # no requirement files
env_install
env_enter
exec python "$ROOT/scripts/quickstart.py"
