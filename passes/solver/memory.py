def estimated_bytes(n, k, s):
    return 0
