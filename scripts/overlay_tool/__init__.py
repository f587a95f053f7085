# SPDX-License-Identifier: Apache-2.0
"""Builds a patched SGLang tree from a pinned release, a patch series and files that are only added."""
