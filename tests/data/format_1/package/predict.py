"""Segment every image of a folder with the model beside this file.

    python predict.py INPUT OUTPUT

More options: python predict.py --help. Needs what requirements.txt lists, and no network.
"""

import sys
from pathlib import Path

from nnunet_transformers.cli import main

if __name__ == "__main__":
    sys.argv[:1] = ["nnunet-transformers", "package", "predict", str(Path(__file__).resolve().parent)]
    main()
