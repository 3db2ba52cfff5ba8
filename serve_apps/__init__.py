"""Ray Serve apps: typed builders `build_app(args) -> Application` for `serve run` and `serve deploy`."""
