# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that were trained for HSA (HiLS) say themselves what HSA is; options that would change it are refused."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

from sglang.srt.configs.hils import HiLSConfig, is_hils
from sglang.srt.layers.attention.hsa import compat
from sglang.srt.layers.attention.hsa.config import FIELD_PREFIX, option
from sglang.srt.layers.attention.hsa.model_refusals import Refusal
from sglang.srt.layers.attention.hsa.page_repr import PRIOR

if TYPE_CHECKING:
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)

# Options that a user may give another value than the checkpoint, which makes another model of it.
CHANGEABLE = ("topk", "window_size")


def checkpoint_options(model: ModelConfig) -> Dict[str, Any]:
    """What a checkpoint says of the fields of HSAConfig, by their names; nothing for one that was not trained for HSA."""
    if not is_hils(model.hf_config):
        return {}
    config: HiLSConfig = model.hf_config
    return dict(
        topk=config.hils_topk,
        page_size=config.tokens_per_page,
        selection_strategy="softmax_head",
        layers=",".join(map(str, config.hsa_layer_ids)) or "all",
        prefill="sparse",
        window_size=config.hsa_window,
        enable_swa_fusion=True,
        chunk_repr=PRIOR.name,
        weight_mode="score",
        sink_pages=0,
    )


def check_given(view: ServerArgs, options: Dict[str, Any]) -> List[str]:
    """What was given and contradicts the checkpoint, one line each; what may change it is logged."""
    problems = []
    for name, value in options.items():
        given = getattr(view, FIELD_PREFIX + name)
        if given is None or given == value:
            continue
        if name in CHANGEABLE:
            logger.warning(
                f"{option(name)} {given}: the checkpoint was trained with {value}, so this is another model."
            )
        elif name != "page_size":  # --page-size, which says the same, has its own line
            problems.append(
                f"{option(name)} {given}: the checkpoint was trained for HSA with {value}; drop the option."
            )
    return problems


HILS_REFUSALS: Tuple[Refusal, ...] = (
    Refusal(
        "speculative decoding of HiLS checkpoints",
        "--speculative-algorithm",
        lambda args, model: is_hils(model.hf_config)
        and bool(args.speculative_algorithm),
        "the landmarks of draft tokens that are rejected would have represented pages",
        "drop --speculative-algorithm",
    ),
    Refusal(
        "the hierarchical cache with HiLS checkpoints",
        "--enable-hierarchical-cache",
        lambda args, model: is_hils(model.hf_config) and args.enable_hierarchical_cache,
        "a page that comes back from the host has lost what its landmark made of it",
        "drop --enable-hierarchical-cache",
    ),
    Refusal(
        "prefill-decode disaggregation of HiLS checkpoints",
        "--disaggregation-mode",
        lambda args, model: is_hils(model.hf_config)
        and args.disaggregation_mode != "null",
        "what a landmark made of a page is not among the keys and values that are transferred",
        "serve prefill and decode from one instance",
    ),
    Refusal(
        "LoRA adapters of HiLS checkpoints",
        "--enable-lora or --lora-paths with a HiLS checkpoint",
        lambda args, model: is_hils(model.hf_config)
        and bool(args.enable_lora or args.lora_paths),
        "landmarks have queries of their own, and no adapter of them has been compared with a merged checkpoint",
        "merge the adapter into the checkpoint",
    ),
    Refusal(
        "8-bit KV caches of HiLS checkpoints",
        "--kv-cache-dtype fp8_e4m3 or fp8_e5m2",
        lambda args, model: is_hils(model.hf_config)
        and args.kv_cache_dtype.startswith("fp8"),
        "no reference says what a landmark's query makes of rounded keys",
        "leave --kv-cache-dtype at auto",
    ),
    Refusal(
        "more tensor-parallel ranks than KV heads of HiLS checkpoints",
        "--tensor-parallel-size",
        lambda args, model: is_hils(model.hf_config)
        and args.tp_size > model.get_total_num_kv_heads(),
        "the query heads of a KV head were trained to choose pages together, and they would be on several ranks",
        "use at most as many ranks as the model has KV heads",
    ),
    Refusal(
        "pipeline parallelism of HiLS checkpoints",
        "--pipeline-parallel-size",
        lambda args, model: is_hils(model.hf_config) and args.pp_size > 1,
        "their models have all layers on each rank",
        "use --tensor-parallel-size",
    ),
    Refusal(
        "data-parallel attention of HiLS checkpoints",
        "--enable-dp-attention or --attn-dp-size",
        lambda args, model: is_hils(model.hf_config)
        and compat.attention_dp_size(args) > 1,
        "no rank has been idle with rows of landmarks",
        "use --dp-size without it",
    ),
)


def unsupported_fields(model: ModelConfig) -> List[str]:
    """What a HiLS checkpoint's configuration asks for and is not served, one line each."""
    if not is_hils(model.hf_config):
        return []
    return [
        f"--attention-backend hsa does not support this HiLS checkpoint, which asks for {what} in its config.json."
        for what in model.hf_config.unsupported()
    ]
