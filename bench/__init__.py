"""Benches: verify, then time, beside the peers; imported as vilt_fast.bench."""
