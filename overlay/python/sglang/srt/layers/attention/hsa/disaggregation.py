# SPDX-License-Identifier: Apache-2.0
"""``--disaggregation-mode``: keys and values travel, and the decode server represents the pages that arrive from them.

SGLang hands pages out before their keys arrive, and a request takes part in a batch only after. So to the versions of pages
an arrived page is like one that comes back from the host (see ``page_repr_pool``), and nothing here has to be done for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Tuple

from sglang.srt.layers.attention.hsa import compat
from sglang.srt.layers.attention.hsa.model_refusals import Refusal

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

_BACKUP = "disaggregation_decode_retraction_backup"


def keep_retracted_keys_in_tensors(args: ServerArgs) -> None:
    """Let a decode server keep the keys of retracted requests in tensors on the host, unless the user wants them lost.

    Since 0.5.22 SGLang would choose a pool of the hierarchical cache for them, with which HSA has not been run.
    """
    view = compat.arguments(args)
    if view.disaggregation_mode == "decode" and compat.asked(view, _BACKUP, "") is None:
        compat.declare(args, **{_BACKUP: "cpu_tensor"})


def _is_disaggregated(args: ServerArgs) -> bool:
    return args.disaggregation_mode != "null"


DISAGGREGATION_REFUSALS: Tuple[Refusal, ...] = (
    Refusal(
        "drafts or adapters with prefill-decode disaggregation",
        "--disaggregation-mode with --speculative-algorithm, --enable-lora or --lora-paths",
        lambda args, model: _is_disaggregated(args)
        and bool(args.speculative_algorithm or args.enable_lora or args.lora_paths),
        "two servers have been compared with one without them alone",
        "drop the other option",
    ),
    Refusal(
        "images with prefill-decode disaggregation",
        "--disaggregation-mode with a model that reads images",
        lambda args, model: _is_disaggregated(args) and model.is_multimodal,
        "two servers have been compared with one for text alone",
        "serve prefill and decode from one instance",
    ),
    Refusal(
        "several stages or attention ranks with prefill-decode disaggregation",
        "--disaggregation-mode with --pipeline-parallel-size or --enable-dp-attention",
        lambda args, model: _is_disaggregated(args)
        and (args.pp_size > 1 or compat.attention_dp_size(args) > 1),
        "two servers have been compared with one without them alone",
        "use --tensor-parallel-size or --data-parallel-size",
    ),
    Refusal(
        "pools on the host with prefill-decode disaggregation",
        "--disaggregation-mode with --enable-hierarchical-cache or --disaggregation-decode-retraction-backup host_pool",
        lambda args, model: _is_disaggregated(args)
        and (
            args.enable_hierarchical_cache or compat.asked(args, _BACKUP) == "host_pool"
        ),
        "neither has been run with it",
        "drop --enable-hierarchical-cache, and leave the backup at cpu_tensor",
    ),
    Refusal(
        "decode KV offload",
        "--disaggregation-decode-enable-offload-kvcache",
        lambda args, model: args.disaggregation_decode_enable_offload_kvcache,
        "offloaded pages lose their representations",
        "drop the option",
    ),
)
