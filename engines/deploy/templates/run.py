#!/usr/bin/env python3
"""Draw with this bundle's engines: python3 run.py --prompt "a red fox in snow" --output fox.png

Needs numpy, tensorrt (JetPack's own), tokenizers and Pillow. lib/ holds the rest.
"""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
OLDEST = (3, 10)  # read by older Pythons too, so that they can say it
sys.path.insert(0, os.path.join(HERE, "lib"))
sys.dont_write_bytecode = True  # the bundle stays as it was copied

if __name__ == "__main__":
    if sys.version_info < OLDEST:
        sys.exit("error: run.py needs Python 3.10 or later: start it with a later python3, or use example/.")
    from pathlib import Path

    from engines.deploy.device.main import main

    sys.exit(main(Path(HERE)))
