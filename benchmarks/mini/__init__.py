# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of the mini engine. See docs/mini_engine.md."""
