"""Ray Serve applications: typed builders, nothing runs at import."""
