"""How the embedded model was made: data, training stages, packaging, evaluation.

Run from the root of the checkout: ``python -m training.train --out DIR``.
"""
