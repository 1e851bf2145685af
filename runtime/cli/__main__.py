"""``python -m fairy.runtime.cli``: what the command `fairy` runs."""

from fairy.runtime.start import main

main()
