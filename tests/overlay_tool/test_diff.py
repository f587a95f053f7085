# SPDX-License-Identifier: Apache-2.0
"""The diff reader and the exact applier, on their own."""

from __future__ import annotations

import pytest
from overlay_tool.applier import apply_exact, reverses
from overlay_tool.console import OverlayError
from overlay_tool.diff import split_lines
from overlay_tool.series import parse_patch
from overlay_tool.tree import Entry, blob_id

HEAD = b"From " + b"0" * 40 + b" Mon Sep 17 00:00:00 2001\nSubject: [PATCH] [Core] Folded\n subject\n\nwhy\n\n"


def patch(body: bytes):
    return parse_patch("x.patch", HEAD + body)


def change(old: bytes, new: bytes, hunk: bytes, path: bytes = b"f") -> bytes:
    ids = b"%s..%s" % (blob_id(old).encode(), blob_id(new).encode())
    return b"diff --git a/%s b/%s\nindex %s 100644\n--- a/%s\n+++ b/%s\n%s" % (path, path, ids, path, path, hunk)


def test_subject_and_message():
    made = patch(change(b"a\n", b"b\n", b"@@ -1 +1 @@\n-a\n+b\n"))
    assert made.subject == "[Core] Folded subject" and made.message.strip() == "why"
    assert (made.added, made.removed) == (1, 1)


@pytest.mark.parametrize(
    "old,new,hunk",
    [
        (b"a\nb\n", b"a\nB\n", b"@@ -1,2 +1,2 @@\n a\n-b\n+B\n"),
        (b"a\nb", b"a\nb\n", b"@@ -1,2 +1,2 @@\n a\n-b\n\\ No newline at end of file\n+b\n"),
        (b"a\nb\n", b"a\nb", b"@@ -1,2 +1,2 @@\n a\n-b\n+b\n\\ No newline at end of file\n"),
        (b"a\r\nb\r\n", b"a\r\nb\n", b"@@ -1,2 +1,2 @@\n a\r\n-b\r\n+b\n"),
        (b"a\rb\n", b"a\rc\n", b"@@ -1 +1 @@\n-a\rb\n+a\rc\n"),
        (b"a\n", b"new\na\n", b"@@ -1 +1,2 @@\n+new\n a\n"),
        (b"-- \n", b"--- x\n", b"@@ -1 +1 @@\n--- \n+--- x\n"),
    ],
)
def test_applies_and_reverses_every_byte(old, new, hunk):
    files = {"f": Entry(old)}
    made = patch(change(old, new, hunk))
    apply_exact(made, files)
    assert files == {"f": Entry(new)}
    assert reverses(made, files) and files == {"f": Entry(old)}


def test_a_path_with_spaces():
    files = {"a b/c d": Entry(b"a\n")}
    apply_exact(patch(change(b"a\n", b"b\n", b"@@ -1 +1 @@\n-a\n+b\n", b"a b/c d")), files)
    assert files == {"a b/c d": Entry(b"b\n")}


def test_mode_changes():
    made = patch(b"diff --git a/f b/f\nold mode 100644\nnew mode 100755\n")
    files = {"f": Entry(b"a\n")}
    apply_exact(made, files)
    assert files["f"].mode == "100755"
    with pytest.raises(OverlayError, match="mode 100755, the patch expects 100644"):
        apply_exact(made, files)


@pytest.mark.parametrize(
    "old",
    [b"x\na\nb\n", b"a\nX\n", b"a\n", b"a\nb\nmore\n", b"a\nb"],
    ids=["moved", "edited", "short", "longer", "no newline"],
)
def test_anything_but_the_exact_file_is_refused_and_untouched(old):
    files = {"f": Entry(old)}
    with pytest.raises(OverlayError, match="x.patch does not apply exactly"):
        apply_exact(patch(change(b"a\nb\n", b"a\nB\n", b"@@ -1,2 +1,2 @@\n a\n-b\n+B\n")), files)
    assert files == {"f": Entry(old)}


def test_the_lines_themselves_must_match_where_a_patch_gives_no_blob_ids():
    bare = patch(b"diff --git a/f b/f\n--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n a\n-b\n+B\n")
    files = {"f": Entry(b"x\na\nb\n")}
    with pytest.raises(OverlayError, match="the hunk for line 1 does not match"):
        apply_exact(bare, files)
    files = {"f": Entry(b"a\nb\nmore\n")}
    apply_exact(bare, files)
    assert files == {"f": Entry(b"a\nB\nmore\n")}


def test_a_failing_second_file_undoes_the_first():
    both = change(b"a\n", b"b\n", b"@@ -1 +1 @@\n-a\n+b\n") + change(b"a\n", b"b\n", b"@@ -1 +1 @@\n-a\n+b\n", b"g")
    files = {"f": Entry(b"a\n"), "g": Entry(b"other\n")}
    with pytest.raises(OverlayError, match="g is not the file"):
        apply_exact(patch(both), files)
    assert files["f"] == Entry(b"a\n")


@pytest.mark.parametrize(
    "body,reason",
    [
        (b"", "changes nothing"),
        (b"diff --git a/f b/f\nindex 1234567..89abcde 100644\n", "abbreviated"),
        (b"diff --git a/f b/f\nGIT binary patch\n", "binary"),
        (b'diff --git "a/\\303" "b/\\303"\n', "quoted"),
        (b"diff --git a/f b/f\nsurprise\n", "unknown line"),
        (b"diff --git a/f b/f\n--- a/f\n+++ b/f\n@@ -1,3 +1 @@\n-a\n+b\n", "shorter than its header"),
        (b"diff --git a/f b/f\n--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n", "shorter than|too early"),
        (b"diff --git a/f b/f\n--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n+b\n+c\n", "not part of a diff"),
        (b"diff --git a/f b/f\n--- a/f\n+++ b/f\n@@ broken\n", "malformed hunk"),
    ],
)
def test_malformed_patches_name_the_line(body, reason):
    with pytest.raises(OverlayError, match=rf"x\.patch, line \d+: .*({reason})"):
        patch(body)


def test_split_lines_ends_lines_at_lf_only():
    assert split_lines(b"a\r\nb\rc\x0cd\ne") == [b"a\r\n", b"b\rc\x0cd\n", b"e"]
    assert split_lines(b"") == [] and split_lines(b"\n") == [b"\n"]
