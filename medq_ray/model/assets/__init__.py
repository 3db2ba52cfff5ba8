"""The embedded models' weights and the scripts that trained them (`python -m medq_ray.model.assets.train`)."""
