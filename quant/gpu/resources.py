"""``python -m quant.gpu.resources``: what each kernel of all floors takes of a GPU; see lowlevel/gpu/resources.py."""

import sys

from lowlevel.gpu.resources import main

if __name__ == "__main__":  # this package's kernels are registered as it is imported
    sys.exit(main())
