"""Grows the mini splits: small transformers that are really trained, with a known family tree."""
