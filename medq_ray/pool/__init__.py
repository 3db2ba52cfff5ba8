"""The image pool U: ingest, hashing, near-duplicates and threshold search (paper Sec. 2.1 and 2.3)."""
