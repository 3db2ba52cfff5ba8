"""python -m medq_ray.cli"""

from medq_ray.cli import main

main()
