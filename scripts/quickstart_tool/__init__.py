# SPDX-License-Identifier: Apache-2.0
"""What quickstart.py asks, and what it proves."""
