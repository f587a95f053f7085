# SPDX-License-Identifier: Apache-2.0
"""Offline long-context retrieval suite in the manner of RULER (arXiv 2404.06654)."""
