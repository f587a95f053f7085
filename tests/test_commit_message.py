# SPDX-License-Identifier: Apache-2.0
"""The commit-msg hook, in a repository of git and as pre-commit is told to install it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "commit_message.py"
SIGNED = "Signed-off-by: A Developer <dev@example.org>"
NO_SIGN_OFF = "commit message: there is no Signed-off-by; commit with git commit --signoff"


def complaints(tmp_path, message: str) -> list[str]:
    """What the hook prints; it fails if and only if it prints something."""
    path = tmp_path / "COMMIT_EDITMSG"
    path.write_text(message, encoding="utf-8")
    done = subprocess.run([SCRIPT, path], cwd=ROOT, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert done.returncode == bool(lines) and not done.stdout
    return lines


@pytest.mark.parametrize("columns, fits", [(1, True), (71, True), (72, True), (73, False), (127, False)])
def test_columns_of_the_subject(tmp_path, columns, fits):
    expected = [] if fits else [f"commit message: the subject has {columns} columns; shorten it to 72"]
    assert complaints(tmp_path, f"{'ä' * columns}\n\nWhy.\n\n{SIGNED}\n") == expected


@pytest.mark.parametrize(
    "line",
    ["", "Signed-off-by:", "Signed-off-by: A Developer", "signed off by me", f"  {SIGNED}", f"# {SIGNED}",
     "Signed-off-by: <dev@example.org>"],
)  # fmt: skip
def test_a_missing_sign_off(tmp_path, line):
    assert complaints(tmp_path, f"[HSA] Change\n\nWhy.\n\n{line}\n") == [NO_SIGN_OFF]


def test_both_are_said_at_once(tmp_path):
    assert len(complaints(tmp_path, "x" * 80 + "\n")) == 2


def test_what_git_strips_does_not_count(tmp_path):
    """Blank lines before the subject, comments, and below the scissors the difference."""
    scissors = f"# {'-' * 24} >8 {'-' * 24}"
    assert complaints(tmp_path, f"\n# {'x' * 80}\n\n[HSA] Change\n\n{SIGNED}\n{scissors}\n+{'x' * 80}\n") == []
    assert complaints(tmp_path, f"[HSA] Change\n{scissors}\n{SIGNED}\n") == [NO_SIGN_OFF]


@pytest.mark.parametrize("subject", ["Merge branch 'main'", "fixup! [HSA] " + "x" * 72])
def test_messages_that_git_writes(tmp_path, subject):
    assert complaints(tmp_path, f"{subject}\n") == []


def test_usage():
    done = subprocess.run([SCRIPT], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "usage: commit_message.py FILE\n")


def hook():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert "commit-msg" in config["default_install_hook_types"]  # what `pre-commit install` installs
    (found,) = [hook for repo in config["repos"] for hook in repo["hooks"] if "commit-msg" in hook.get("stages", [])]
    return found


def test_git_refuses_the_commit(tmp_path):
    """With the entry of the configuration as the hook."""
    git = ["git", "-c", "user.name=A Developer", "-c", "user.email=dev@example.org", "-c", "commit.gpgSign=false"]
    run = lambda *args: subprocess.run([*git, *args], cwd=tmp_path, capture_output=True, text=True)  # noqa: E731
    run("init", "--quiet", "--template=", ".")
    entry = ROOT / hook()["entry"]
    assert hook()["language"] == "script" and entry == SCRIPT
    (tmp_path / ".git/hooks").mkdir()
    (tmp_path / ".git/hooks/commit-msg").symlink_to(entry)
    refused = run("commit", "--allow-empty", "-m", "[HSA] Change")
    assert refused.returncode == 1 and NO_SIGN_OFF in refused.stderr
    assert run("commit", "--allow-empty", "--signoff", "-m", "[HSA] Change").returncode == 0
    assert run("log", "--format=%s").stdout == "[HSA] Change\n"
