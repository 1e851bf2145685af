"""How the embedded model was made: data, training stages, packaging, evaluation.

Run from the root of the checkout: ``python -m training.autoencoder16``, ``python -m training.editor16``; what gave the
first weights, the former embedded model, is ``python -m training.train``.
"""
