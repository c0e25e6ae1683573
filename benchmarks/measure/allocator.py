"""Freed memory stays with the process while it measures."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of mallopt, from malloc.h
_NEVER = 2**31 - 1


def keep_memory() -> bool:
    """Tells glibc's malloc to serve large arrays from memory it has and to give none back; whether it could be told.

    By default arrays of more than 32 MiB are mapped anew at each call, and the kernel zeroes their pages one by one:
    a cliff in time at some length, for every library alike, that says nothing about the kernels measured. Allocators
    that keep memory (jemalloc, tcmalloc) have no such cliff.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
