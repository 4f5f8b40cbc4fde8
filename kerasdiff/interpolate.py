"""`python -m kerasdiff.interpolate`; in Python, `kerasdiff.interpolate` is the function."""

import sys

from kerasdiff.cli.interpolate_command import PROGRAM, main

if __name__ == "__main__":
    PROGRAM.run(main)
else:  # so that `import kerasdiff.interpolate` does not hide the function
    from kerasdiff.api import interpolate

    sys.modules[__name__] = interpolate  # type: ignore[assignment]
