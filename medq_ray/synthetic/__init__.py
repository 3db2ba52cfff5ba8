"""The embedded world: phantoms of five modalities, degradations from physics, and their exact ground truth.

Floor 2. `world.make_image` makes one image, `world.write_world` a whole world, `world.read_world` reads one back.
"""
