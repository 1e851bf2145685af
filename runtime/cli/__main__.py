"""``python -m fairy.runtime.cli.main``: what the command `fairy` runs."""

from fairy.runtime.start import main

main()
