# SPDX-License-Identifier: Apache-2.0
"""The repository works from any clone: git that turns line ends, odd paths, no identity, a strict umask."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_clone_that_git_would_give_other_line_ends(tmp_path):
    home, clone = tmp_path / "home", tmp_path / "clone (äöü)"
    home.mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env.update(HOME=str(home), XDG_CONFIG_HOME=str(home), GIT_CONFIG_NOSYSTEM="1", XDG_CACHE_HOME=str(home / "cache"))

    def run(*command, **options):
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, umask=0o077, **options)

    options = "-c", "core.autocrlf=true", "-c", "safe.directory=*"
    done = run("git", *options, "clone", "-q", "--no-local", str(ROOT), str(clone))
    assert done.returncode == 0, done.stderr
    run("git", "config", "core.autocrlf", "true", cwd=clone)
    ends = run("git", "ls-files", "--eol", cwd=clone).stdout
    assert ends.count("w/lf") > 300 and "w/crlf" not in ends and "w/mixed" not in ends
    assert run("git", "status", "--short", cwd=clone).stdout == ""
    done = run(str(clone / "scripts" / "apply_overlay.sh"), "status")  # reads lock, series and patches
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no patched tree built yet" in done.stdout and "not applied" in done.stdout
