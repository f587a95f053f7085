# SPDX-License-Identifier: Apache-2.0
"""Deliberate faults of storage, selection and kernels, and the test that fails with each.

A fault replaces one piece of a file below ``sglang/srt``, which occurs there once. A test is named by its file below
``sglang/test/attention`` and its function.
"""

from __future__ import annotations

from dataclasses import dataclass

POOL = "mem_cache/page_repr_pool.py"
VERSIONS = "mem_cache/page_versions.py"
ALLOCATOR = "mem_cache/page_repr_allocator.py"
HSA = "layers/attention/hsa/"
HILS_KERNELS = "layers/hils_kernels.py"


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: what is wrong.
        file: below ``sglang/srt``.
        old, new: the piece, and what stands in its place.
        test: file and function, ``test_hsa_x.py::test_y``.
        kernel: the test runs Triton kernels.
    """

    name: str
    file: str
    old: str
    new: str
    test: str
    kernel: bool = False


STORAGE = (
    Fault(
        "a page that is open already gets a new version with each token",
        VERSIONS,
        "opened = slots % page_size == 0",
        "opened = slots % page_size >= 0",
        "test_hsa_kvpool_repr.py::test_alloc_decode_bumps_at_page_starts_only",
    ),
    Fault(
        "decode hands out pages without a new version",
        ALLOCATOR,
        "return self._handed_out(super().alloc_decode(*args, **kwargs))",
        "return super().alloc_decode(*args, **kwargs)",
        "test_hsa_kvpool_repr.py::test_alloc_decode_bumps_at_page_starts_only",
    ),
    Fault(
        "a pass believes pages that were handed out after its batch was built",
        POOL,
        "return versions.masked_fill_(versions > built_at, NO_VERSION)",
        "return versions",
        "test_hsa_page_versions.py::test_a_late_forward_pass_never_stamps_pages_of_the_next_batch",
    ),
    Fault(
        "keys that are moved leave the old representation at their new place",
        POOL,
        "        super().move_kv_cache(tgt_loc, src_loc)\n        self.invalidate_pages_of(tgt_loc)",
        "        super().move_kv_cache(tgt_loc, src_loc)",
        "test_hsa_pool_variants.py::test_moved_keys_invalidate_their_target_page",
    ),
    Fault(
        "an allocator that is reset keeps the versions",
        ALLOCATOR,
        "        super().clear()\n        self._kvcache.invalidate_all_pages()",
        "        super().clear()",
        "test_hsa_kvpool_repr.py::test_clear_leaves_nothing_valid",
    ),
    Fault(
        "a writer stamps the version of now instead of its batch's",
        POOL,
        "        if page_version is None:\n            page_version = self.page_version[page_ids]",
        "        page_version = self.page_version[page_ids]",
        "test_hsa_page_versions.py::test_a_writer_stamps_the_version_its_batch_was_built_with",
    ),
    Fault(
        "an older stamp passes for a page's own",
        POOL,
        "return stamp[page_ids.long()] == page_version",
        "return stamp[page_ids.long()] <= page_version",
        "test_hsa_kvpool_repr.py::test_another_version_is_no_representation",
    ),
    Fault(
        "a page counts as complete one token early",
        HSA + "passes/metadata.py",
        "complete = own & (page < (seq_lens // page_size).unsqueeze(1))",
        "complete = own & (page < ((seq_lens + 1) // page_size).unsqueeze(1))",
        "test_hsa_backend_decode.py::test_only_complete_pages_are_represented",
    ),
)

REPRESENTATIONS = (
    Fault(
        "codes of slow_keys are rounded down",
        HSA + "page_repr.py",
        "above >= (level + 0.5) * steps",
        "above >= (level + 1.0) * steps",
        "test_hsa_paged_kernel.py::test_extend_and_decode_equal_the_oracle",
    ),
    Fault(
        "slow_keys keeps the channels that turn fastest",
        HSA + "page_repr.py",
        "frequencies.abs().float().cpu(), stable=True)",
        "frequencies.abs().float().cpu(), stable=True, descending=True)",
        "test_hsa_paged_kernel.py::test_slow_channels_are_those_that_turn_least",
    ),
    Fault(
        "the kernel writes the codes of two channels in each other's place",
        HSA + "ops/page_repr/store.py",
        "code |= _store_bounds(second, bounds + HALF, inside, KEPT) << 4",
        "code = code << 4 | _store_bounds(second, bounds + HALF, inside, KEPT)",
        "test_hsa_extend_kernels.py::test_every_kind_and_strategy",
        kernel=True,
    ),
    Fault(
        "the kernel takes an approximate quotient for the code",
        HSA + "ops/page_repr/store.py",
        "code += (above >= (code + 0.5) * step).to(tl.float32)",
        "code += 0.0",
        "test_hsa_shared_pages.py::test_keys_in_the_middle_of_two_levels_get_the_upper_one",
        kernel=True,
    ),
    Fault(
        "representations are taken from keys without their scale",
        HSA + "ops/page_repr/store.py",
        "page_features(keys * k_scale, PAGE_SIZE, KIND)",
        "page_features(keys, PAGE_SIZE, KIND)",
        "test_hsa_extend_kernels.py::test_8_bit_cache",
        kernel=True,
    ),
    Fault(
        "a kernel stamps pages that belong to a later batch",
        HSA + "ops/page_repr/kernel.py",
        "complete = (version >= 0) & (g < KV_HEADS)",
        "complete = g < KV_HEADS",
        "test_hsa_decode_kernels.py::test_a_page_handed_out_again_gets_no_stamp",
        kernel=True,
    ),
    Fault(
        "decode heals a page whose last key comes in the same pass",
        HSA + "ops/page_repr/kernel.py",
        "if _slots_in(lost, out_slots, num_slots, PAGE_SIZE, PAGES) == 0:",
        "if True:",
        "test_hsa_decode_kernels.py::test_a_page_whose_last_key_comes_in_this_pass_is_left_to_the_next",
        kernel=True,
    ),
    Fault(
        "decode does not heal",
        HSA + "ops/page_repr/kernel.py",
        "missing = (stamp != version) & (version >= 0)",
        "missing = (stamp != version) & (version < 0)",
        "test_hsa_decode_kernels.py::test_pages_without_a_representation_are_healed",
        kernel=True,
    ),
)

SELECTION = (
    Fault(
        "a page without a representation is passed over",
        HSA + "selector.py",
        'logits = logits.masked_fill(first, float("inf"))',
        "pass",
        "test_hsa_paged_kernel.py::test_pages_without_a_representation_come_first",
    ),
    Fault(
        "the last page before the window is no candidate",
        HSA + "layout.py",
        "    pages = pages - sink_pages\n",
        "    pages = pages - sink_pages - 1\n",
        "test_hsa_contract.py::test_window_sinks_and_candidates_partition_the_past",
    ),
    Fault(
        "the reference breaks ties towards the larger page",
        HSA + "selector.py",
        "scores, order = torch.sort(logits, dim=-1, descending=True, stable=True)",
        "scores, order = torch.sort(logits.flip(-1), dim=-1, descending=True, stable=True)\n"
        "        order = num_pages - 1 - order",
        "test_hsa_paged_kernel.py::test_ties_go_to_the_smaller_page_and_order_is_ascending",
    ),
    Fault(
        "the decode kernel breaks ties towards the larger page",
        HSA + "ops/select/decode_ranking.py",
        "(tl.cumsum(tie.to(tl.int32)) <= room)",
        "(tl.cumsum(tie.to(tl.int32), reverse=True) <= room)",
        "test_hsa_decode_selection.py::test_ranking_is_the_total_order_of_the_reference",
        kernel=True,
    ),
    Fault(
        "the search for the threshold begins at the largest key",
        HSA + "ops/select/extend_ranking.py",
        "low = tl.min(tl.max(best, axis=2), axis=1)",
        "low = tl.max(tl.max(best, axis=2), axis=1)",
        "test_hsa_extend_ranking.py::test_thresholds_are_exact",
        kernel=True,
    ),
)

ATTENTION = (
    Fault(
        "a launch leaves its count of programs behind",
        HSA + "ops/decode/kernel.py",
        "tl.store(arrivals + row, 0)  # ready for the next launch",
        "pass",
        "test_hsa_dense_layers.py::test_every_layer_gets_its_own_attention",
        kernel=True,
    ),
    Fault(
        "a query in decode does not see its own key",
        HSA + "ops/decode/kernel.py",
        "from_selection | (logical * PAGE_SIZE + offset <= position)",
        "from_selection | (logical * PAGE_SIZE + offset < position)",
        "test_hsa_decode_kernels.py::test_odd_lengths",
        kernel=True,
    ),
    Fault(
        "the scale of the keys does not reach the logits",
        HSA + "ops/decode/kernel.py",
        "logits = logits * (sm_scale * k_scale)",
        "logits = logits * sm_scale",
        "test_hsa_dense_layers.py::test_an_8_bit_cache_is_read_with_its_scales",
        kernel=True,
    ),
    Fault(
        "extend does not rescale what it summed before a larger logit came",
        HSA + "ops/extend/attention_step.py",
        "return new_top, total * rescale + tl.sum(p, axis=1), acc",
        "return new_top, total + tl.sum(p, axis=1), acc",
        "test_hsa_extend_kernels.py::test_odd_lengths",
        kernel=True,
    ),
    Fault(
        "the page table of a batch misses a sequence's last page",
        HSA + "ops/page_table/kernel.py",
        "pages = tl.cdiv(tl.load(seq_lens + b), PAGE_SIZE)",
        "pages = tl.load(seq_lens + b) // PAGE_SIZE",
        "test_hsa_decode_kernels.py::test_odd_lengths",
        kernel=True,
    ),
    Fault(
        "rows of padding keep the lengths of an earlier draft extend",
        HSA + "passes/draft_rows.py",
        "seq_lens.zero_()  # rows beyond the sum of the lengths are left alone",
        "pass",
        "test_hsa_draft_rows.py::test_draft_rounds",
        kernel=True,
    ),
)

NORMS = (
    Fault(
        "a norm is rounded after its weight alone",
        HILS_KERNELS,
        "first = _round(_round(first * scale, dtype) * first_weight, dtype)",
        "first = _round(first * scale * first_weight, dtype)",
        "test_hils_norm_rotary.py::test_heads_are_those_of_torch",
        kernel=True,
    ),
    Fault(
        "a rotary embedding rounds its sums and not its products",
        HILS_KERNELS,
        "turned = _round(first * cosine, turn) - _round(second * sine, turn)",
        "turned = first * cosine - second * sine",
        "test_hils_norm_rotary.py::test_heads_are_those_of_torch",
        kernel=True,
    ),
    Fault(
        "the query that selects is turned with the rounding of q",
        HILS_KERNELS,
        "positions, cos, sin, True, SELECT_ALL_HEADS",
        "positions, cos, sin, False, SELECT_ALL_HEADS",
        "test_hils_norm_rotary.py::test_heads_are_those_of_torch",
        kernel=True,
    ),
    Fault(
        "hidden states are normed before their sum is rounded",
        HILS_KERNELS,
        "values = _round(values + more, dtype)",
        "values = values + more",
        "test_hils_norm_rotary.py::test_hidden_states_are_those_of_torch",
        kernel=True,
    ),
)

LANDMARKS = (
    Fault(
        "the softmax of decode has no zero logit",
        HSA + "ops/decode/kernel.py",
        "mass += tl.exp(sink - highest)",
        "pass",
        "test_hsa_landmark_decode.py::test_rows_attend_by_the_definition",
        kernel=True,
    ),
    Fault(
        "programs of a landmark's window begin where those of the pages end",
        HSA + "ops/select/prior_decode.py",
        "split - page_programs,",
        "split,",
        "test_hsa_landmark_decode.py::test_rows_attend_by_the_definition",
        kernel=True,
    ),
    Fault(
        "the query that attends chooses pages",
        HSA + "ops/select/prior_decode.py",
        "chooser = select_q + b",
        "chooser = q + b",
        "test_hsa_landmark_decode.py::test_rows_attend_by_the_definition",
        kernel=True,
    ),
    Fault(
        "places of landmarks count in the log-sum-exp of the window",
        HSA + "ops/select/decode_scores.py",
        "visible = visible & (token % PAGE_SIZE < PAGE_SIZE - 1)",
        "pass",
        "test_hsa_landmark_decode.py::test_rows_attend_by_the_definition",
        kernel=True,
    ),
    Fault(
        "a landmark without a page writes one",
        HSA + "ops/page_repr/landmark_kernel.py",
        "completes = tl.load(lengths + row) > 0",
        "pass",
        "test_hsa_landmark_decode.py::test_a_landmark_writes_the_page_of_its_token",
        kernel=True,
    ),
)

WINDOWS = (
    Fault(
        "a sliding window is one token too long in decode",
        HSA + "ops/decode/kernel.py",
        "offset > position - EXACT",
        "offset >= position - EXACT",
        "test_hsa_window_layers.py::test_decode",
        kernel=True,
    ),
    Fault(
        "decode reads windows by the pages of the other layers",
        HSA + "passes/decode.py",
        "page_table = self.windows.page_table",
        "pass",
        "test_hsa_window_layers.py::test_decode",
        kernel=True,
    ),
    Fault(
        "keys of sliding windows are written to the slots of the other layers",
        HSA + "backend.py",
        "slots = self.forward_pass.windows.slots",
        "pass",
        "test_hsa_window_layers.py::test_decode",
        kernel=True,
    ),
    Fault(
        "sliding windows attend the sink pages",
        HSA + "params.py",
        "return 0 if self.exact_window else self.config.sink_pages",
        "return self.config.sink_pages",
        "test_hsa_window_layers.py::test_prompts",
        kernel=True,
    ),
    Fault(
        "prompts add the sink of another head",
        HSA + "ops/extend/kernel.py",
        "tl.load(sink_logits + g * GROUP + h, mask=real",
        "tl.load(sink_logits + h, mask=real",
        "test_hsa_window_layers.py::test_prompts",
        kernel=True,
    ),
    Fault(
        "the references leave the sinks out",
        HSA + "passes/reference_attention.py",
        "if params.sink_logits is None:",
        "if True:",
        "test_hsa_window_layers.py::test_decode",
        kernel=True,
    ),
)

REFUSALS = (
    Fault(
        "every model that reads images is served",
        HSA + "model_refusals.py",
        "return model.is_multimodal and not _is_one_of(model, *served)",
        "return False",
        "test_hsa_image_models.py::test_only_models_that_were_compared_are_served",
    ),
    Fault(
        "drafts after images are served",
        HSA + "refusals.py",
        "bool(args.speculative_algorithm) and model.is_multimodal",
        "False",
        "test_hsa_image_models.py::test_refused_of_models_that_read_images",
    ),
)

RANKS = (
    Fault(
        "rows of no request count as requests",
        HSA + "compat.py",
        "return batch.batch_size if filled_up is None else filled_up",
        "return batch.batch_size",
        "test_hsa_padded_batches.py::test_rows_of_no_request",
    ),
    Fault(
        "a rank without requests plans a pass",
        HSA + "backend.py",
        "if forward_batch.forward_mode.is_idle():",
        "if False:",
        "test_hsa_padded_batches.py::test_a_rank_without_requests",
    ),
    Fault(
        "chunks of a rank end inside a page",
        HSA + "server_args.py",
        "unit = page_size * ranks",
        "unit = page_size",
        "test_hsa_padded_batches.py::test_chunks_of_each_rank_end_on_page_boundaries",
    ),
)

DETERMINISM = (
    Fault(
        "the programs of a row depend on its batch again",
        HSA + "passes/decode_attention.py",
        "None if size.batch_invariant else num_processors(device)",
        "num_processors(device)",
        "test_hsa_batch_invariance.py::test_a_decoded_row_does_not_depend_on_its_batch",
        kernel=True,
    ),
    Fault(
        "small pages share a step with those of other rows",
        HSA + "ops/extend/kernel.py",
        "    if batch_invariant:",
        "    if False:",
        "test_hsa_batch_invariance.py::test_a_row_of_a_prompt_does_not_depend_on_its_batch",
        kernel=True,
    ),
    Fault(
        "short prompts go to the dense backend unless a longer one is beside them",
        HSA + "backend.py",
        "if self.batch_invariant and self.config.dense_below",
        "if False and self.config.dense_below",
        "test_hsa_batch_invariance.py::test_nor_on_who_attends_short_prompts",
        kernel=True,
    ),
    Fault(
        "prompts without a page to select have a kernel of their own",
        HSA + "passes/tile_attention.py",
        "if not plan.tiling.batch_invariant:",
        "if True:",
        "test_hsa_kernels_compile.py::test_deterministic_batches_share_one_variant",
    ),
)

FAULTS = (
    *STORAGE, *REPRESENTATIONS, *SELECTION, *ATTENTION, *NORMS, *LANDMARKS, *WINDOWS, *REFUSALS, *RANKS, *DETERMINISM
)  # fmt: skip
