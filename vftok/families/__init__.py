"""Other families of tokenizers, a folder each, behind the interface of `vftok.Tokenizer`.

Their rows are in vftok/tokenizer/families.py.
"""
