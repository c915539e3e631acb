"""An odd machine: Python processes with this folder on their path have a full disk, or do not see some files."""

from __future__ import annotations

import ctypes
import os
import resource

NEW_NAMESPACE, PRIVATE, RECURSIVE = 0x20000, 1 << 18, 1 << 14

if limit := os.environ.get("LARGEST_FILE"):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
if hidden := os.environ.get("HIDDEN_FOLDER"):
    system = ctypes.CDLL(None, use_errno=True)
    failed = system.unshare(NEW_NAMESPACE)
    failed = failed or system.mount(b"none", b"/", None, PRIVATE | RECURSIVE, None)
    failed = failed or system.mount(b"none", hidden.encode(), b"tmpfs", 0, None)
    if failed:
        raise OSError(ctypes.get_errno(), "only root may hide a folder")
