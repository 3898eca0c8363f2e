"""What every stage shares: the artifact directory, its manifest, its content-addressed store and its errors.

This package imports nothing of ours, so that each stage can hand files to the next without knowing it.
"""
