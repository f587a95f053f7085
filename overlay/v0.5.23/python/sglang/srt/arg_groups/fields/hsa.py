# SPDX-License-Identifier: Apache-2.0
"""Config fields of the ``exec.hsa`` namespace: the options of HSAServerArgs as fields of the server's record."""

from typing import get_type_hints

import msgspec

from sglang.srt.arg_groups.arg_utils import A, Arg
from sglang.srt.layers.attention.hsa.server_args import HSAServerArgs

# add_hsa_cli_args has the command line; ``handle_hsa_backend`` decides what was not given.
_FIELD = Arg(no_cli=True, resolvable=True)

ExecHSA = msgspec.defstruct(
    "ExecHSA",
    [
        (name, A[kind, _FIELD], None)
        for name, kind in get_type_hints(HSAServerArgs).items()
    ],
    namespace={"_NS_PATH": "exec.hsa"},
    module=__name__,
)
