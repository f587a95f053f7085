#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The commit-msg hook of pre-commit: a subject of at most 72 columns, and a sign-off.

    commit_message.py FILE    exit code 1 and one line for each thing that is missing
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SUBJECT_COLUMNS = 72
# `git commit --verbose` puts the difference below this line; its first character is git's core.commentChar.
SCISSORS = re.compile(r"^. -+ >8 -+$", re.MULTILINE)


def problems(message: str) -> list[str]:
    """What is wrong with a message without comments."""
    subject = message.partition("\n")[0]
    if re.match(r"Merge |(fixup|squash|amend)! ", subject):  # git's own words, and what a rebase folds in
        return []
    found = []
    if len(subject) > SUBJECT_COLUMNS:
        found.append(f"the subject has {len(subject)} columns; shorten it to {SUBJECT_COLUMNS}")
    if not re.search(r"^Signed-off-by: \S.* <\S+@\S+>$", message, re.MULTILINE):
        found.append("there is no Signed-off-by; commit with git commit --signoff")
    return found


def read(path: Path) -> str:
    """The message as git will keep it."""
    text = SCISSORS.split(path.read_text(encoding="utf-8"), maxsplit=1)[0]
    strip = ["git", "stripspace", "--strip-comments"]
    return subprocess.run(strip, input=text, capture_output=True, encoding="utf-8", check=True).stdout


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: commit_message.py FILE", file=sys.stderr)
        return 2
    found = problems(read(Path(arguments[0])))
    for problem in found:
        print(f"commit message: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
