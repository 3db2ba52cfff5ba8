"""The review console: what experts work in, over HTTP. Importing it takes FastAPI and SQLAlchemy along."""

from medq_ray.review.console.app import console

__all__ = ["console"]
