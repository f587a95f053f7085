# SPDX-License-Identifier: Apache-2.0
"""Upstream's attention test kit, driven for HSA."""
