"""Command line of the benchmark; one thread for all that it starts, which has to be said before libraries load."""

import os

os.environ.update(OMP_NUM_THREADS="1", nnUNet_def_n_proc="1", nnUNet_n_proc_DA="0")

from nnunet_transformers._processes import exit_with_parent_if_spawned

from .command import main

# nnU-Net's workers import this module
exit_with_parent_if_spawned()
if __name__ == "__main__":
    main()
