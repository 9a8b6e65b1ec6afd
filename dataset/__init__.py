"""Grows the mini splits: small transformers that are really trained, with a known family tree."""

import logging

# PEFT loads it where it is installed, and it warns of kernels that nothing here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
