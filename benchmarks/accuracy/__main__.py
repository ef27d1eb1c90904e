"""Command line of the benchmark; one thread for all that it starts, which has to be said before libraries load."""

import os

os.environ.update(OMP_NUM_THREADS="1", nnUNet_def_n_proc="1", nnUNet_n_proc_DA="0")

from .command import main

if __name__ == "__main__":
    main()
