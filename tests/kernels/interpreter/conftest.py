"""Tests of Triton kernels by themselves, in Triton's interpreter (as tests/kernels/test_interpreter.py runs them:
`TRITON_INTERPRET=1 pytest tests/kernels/interpreter`) or on a CUDA GPU; without either the folder is passed over.
"""

import os

import torch

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available() else ["test_*.py"]
