#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the patched SGLang tree in sglang/; overlay.py does the work.
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit 1
python=${PYTHON:-python3}
if ! command -v "$python" >/dev/null 2>&1; then
    echo "overlay: error: $python was not found; install Python 3.10 or later, or set PYTHON" >&2
    exit 1
fi
exec "$python" "$here/overlay.py" "$@"
