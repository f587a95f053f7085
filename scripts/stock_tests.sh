#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs upstream's own tests on the pristine pin and on the patched tree; stock_tests.py does the work.
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit 2
exec "${PYTHON:-python3}" "$here/stock_tests.py" "$@"
